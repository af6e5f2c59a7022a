"""The published encoders on the meta device: their class, sizes and numbers of parameters."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.config import ProjectorConfig
from timeviper_fast.model.projector import Projector
from timeviper_fast.model.vision.build import build_encoder
from timeviper_fast.presets import VISION_PRESETS

# VideoChat-Flash's published parameters without the language model's (Qwen2-7B: 7,615,616,512)
UMT, INTERNVIDEO2 = 7_922_617_856 - 7_615_616_512, 8_620_852_736 - 7_615_616_512


@pytest.mark.parametrize(
    ("name", "parameters", "tensors", "patches"),
    [
        ("umt-large", UMT, 303, 196),
        ("umt-hd-large", UMT, 303, 784),
        ("internvideo2", INTERNVIDEO2, 512, 256),
    ],
)
def test_encoder_and_projector_have_the_published_size(
    name: str, parameters: int, tensors: int, patches: int
) -> None:
    config = VISION_PRESETS[name]
    with torch.device("meta"):
        encoder = build_encoder(config)
        projector = Projector(ProjectorConfig(clip_frames=4), config.hidden_size, 3584)
    assert len(encoder.state_dict()) == tensors
    parts = (*encoder.parameters(), *projector.parameters())
    assert sum(part.numel() for part in parts) == parameters
    assert config.patches_per_frame == patches


@pytest.mark.parametrize(
    ("name", "owner", "shape", "blocks"),
    [
        ("siglip-vit-so400m-384px", "VisionTransformer", (4, 729, 1152), 26),
        ("dinov2-vit-l", "DINOv2", (4, 256, 1024), 23),
        ("internvideo2-1b-16-224px", "InternVideo2", (4, 256, 1408), 39),
        ("umt-large", "UMT", (4, 196, 1024), 23),
        ("umt-hd-large", "UMT", (4, 784, 1024), 23),
    ],
)
def test_features_of_a_clip(name: str, owner: str, shape: tuple[int, ...], blocks: int) -> None:
    config = VISION_PRESETS[name]
    with torch.device("meta"):
        encoder = build_encoder(config).bfloat16()
        if owner == "UMT":
            encoder.positions = encoder.positions.to("meta")
        features = encoder(torch.empty(4, 3, config.image_size, config.image_size))
    assert type(encoder).__name__ == owner
    assert (features.shape, features.dtype) == (shape, torch.bfloat16)
    assert len(encoder.blocks) == blocks
