"""What the tests of the clip encoders share: their tiny shapes, and golden pixels and weights."""

from __future__ import annotations

import torch

from tests.goldens import golden, manifest
from timeviper_fast.config import VisionConfig

CHECKPOINT = {
    "umt": "model.vision_tower.vision_tower.encoder.",
    "internvideo2": "model.vision_tower.vision_tower.",
}


def tower_config(kind: str) -> VisionConfig:
    """The shape of the recorded tower."""
    about = manifest(f"vcf_{kind}_tower")["config"]
    return VisionConfig(
        kind=kind,
        image_size=about["native"],
        patch_size=about["patch"],
        hidden_size=about["dim"],
        intermediate_size=about["mlp"],
        num_hidden_layers=about["depth_config"],
        num_attention_heads=about["heads"],
        clip_frames=4,
    )


def tower_weights(kind: str) -> dict[str, torch.Tensor]:
    """The recorded weights without the checkpoint's prefix."""
    prefix = CHECKPOINT[kind]
    stored = golden(f"vcf_{kind}_tower").items()
    return {key.removeprefix(prefix): value for key, value in stored if key.startswith(prefix)}


def tower_pixels(rgb: torch.Tensor) -> torch.Tensor:
    """What was fed to the tower: (uint8 - 128) / 64."""
    return (rgb.float() - 128) / 64


def flat(features: torch.Tensor) -> torch.Tensor:
    """(frames, patches, C) of one clip as the goldens hold it: (1, frames * patches, C)."""
    return features.reshape(1, -1, features.shape[-1])
