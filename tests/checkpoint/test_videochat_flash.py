"""The vision side of a VideoChat-Flash checkpoint: names, and frames to visual tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.goldens import golden, manifest
from timeviper_fast.checkpoint.videochat_flash import flash_vision_names
from timeviper_fast.config import ProjectorConfig, VisionConfig
from timeviper_fast.model.projector import Projector
from timeviper_fast.model.vision.build import build_encoder
from timeviper_fast.presets import VISION_PRESETS
from timeviper_fast.video.preprocess import resize_normalize


class VisionSide(nn.Module):
    """Encoder and projector under the names that they have in the whole model."""

    def __init__(self, vision: VisionConfig, projector: ProjectorConfig, hidden_size: int):
        super().__init__()
        self.vision = build_encoder(vision)
        self.projector = Projector(projector, vision.hidden_size, hidden_size)


@torch.no_grad()
def test_frames_to_visual_tokens() -> None:
    tensors, about = golden("vcf_generate"), manifest("vcf_generate")["config"]["vision"]
    vision = VisionConfig(
        kind="umt",
        image_size=about["image_size"],
        patch_size=about["patch"],
        hidden_size=about["dim"],
        intermediate_size=4 * about["dim"],
        num_hidden_layers=about["depth_config"],
        num_attention_heads=about["heads"],
        image_mean=VISION_PRESETS["umt-large"].image_mean,
        image_std=VISION_PRESETS["umt-large"].image_std,
        clip_frames=4,
    )
    heads = about["merge_heads"]
    projector = ProjectorConfig(clip_frames=4, merge_heads=heads, image_tokens=64)
    side, names = VisionSide(vision, projector, 48), flash_vision_names(vision)
    pieces = {key: names(key) for key in tensors}
    side.load_state_dict({p[0].name: tensors[key] for key, p in pieces.items() if p})
    pixels = resize_normalize(
        tensors["frames"], 144, vision.image_mean, vision.image_std, "pillow13"
    )
    for frames, images, run in ((pixels, False, "drop"), (pixels[:1], True, "image")):
        features = side.vision(frames, images)
        tokens = side.projector(features, images)
        want = tensors[f"{run}.tower_features"]
        torch.testing.assert_close(features.reshape(want.shape), want, rtol=0, atol=1e-5)
        want = tensors[f"{run}.visual_embeddings"]
        torch.testing.assert_close(tokens.reshape(want.shape), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "count"), [("umt-hd-large", 307), ("internvideo2", 516)])
def test_names_of_the_whole_checkpoint(name: str, count: int) -> None:
    """303 + 4 and 512 + 4 tensors of the contract; the language model's are another table's."""
    config = VISION_PRESETS[name]
    with torch.device("meta"):
        side = VisionSide(config, ProjectorConfig(clip_frames=4), 64)
    prefix = "model.vision_tower.vision_tower." + ("encoder." if config.kind == "umt" else "")
    stored = [
        key.replace("vision.", prefix, 1).replace("projector.layers", "model.mm_projector.mlp")
        for key in side.state_dict()
    ]
    names = flash_vision_names(config)
    assert len(stored) == count
    assert [piece.name for key in stored for piece in names(key)] == list(side.state_dict())
    assert names("model.layers.0.mlp.up_proj.weight") is None
    assert names("model.mm_projector.norm.weight") is None
