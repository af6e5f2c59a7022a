"""DINOv2's names of weights, in timm's format."""

from __future__ import annotations

from collections.abc import Sequence

from timeviper_fast.checkpoint.mapping import NameMap, Piece, block_names
from timeviper_fast.config import VisionConfig

__all__ = ["dinov2_names"]

_STEM = ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
_LINEAR = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_BLOCK = {
    **{f"{name}.{leaf}": f"{name}.{leaf}" for name in _LINEAR for leaf in ("weight", "bias")},
    **{f"ls{i}.gamma": f"ls{i}.weight" for i in (1, 2)},
}


def dinov2_names(config: VisionConfig) -> NameMap:
    """DINOv2 weights; blocks behind the feature layer and the final norm are ignored."""
    block = block_names(config, _BLOCK)

    def translate(key: str) -> Sequence[Piece] | None:
        if key in ("norm.weight", "norm.bias"):
            return ()
        return (Piece(key),) if key in _STEM else block(key)

    return translate
