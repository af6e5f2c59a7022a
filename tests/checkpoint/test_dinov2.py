"""DINOv2 in timm's names, and TimeViper's id of it."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.checkpoint.dinov2 import dinov2_names
from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.checkpoint.upstream import vision_from_upstream
from timeviper_fast.model.vision.dinov2 import DINOv2


def timm_names(blocks: int) -> list[str]:
    """What timm stores of vit_large_patch14_reg4_dinov2, the final norm included."""
    stem = [
        "cls_token",
        "reg_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    ]
    linear = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    leaves = [f"{name}.{leaf}" for name in linear for leaf in ("weight", "bias")]
    leaves += ["ls1.gamma", "ls2.gamma"]
    return (
        stem
        + [f"blocks.{i}.{leaf}" for i in range(blocks) for leaf in leaves]
        + [
            "norm.weight",
            "norm.bias",
        ]
    )


def test_timms_names_fill_the_model():
    config = vision_from_upstream("dinov2-vit-l")
    names = dinov2_names(config)
    with torch.device("meta"):
        model = DINOv2(config)
    found = [piece.name for key in timm_names(24) for piece in names(key)]
    assert sorted(found) == sorted(model.state_dict())
    assert (config.patches_per_frame, config.hidden_size, config.num_blocks) == (256, 1024, 23)
    assert config.image_mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("key", "pieces"),
    [
        ("blocks.3.ls1.gamma", (Piece("blocks.3.ls1.weight"),)),
        ("blocks.23.norm1.weight", ()),
        ("norm.bias", ()),
        ("head.weight", None),
    ],
)
def test_names(key, pieces):
    assert dinov2_names(vision_from_upstream("dinov2-vit-l"))(key) == pieces
