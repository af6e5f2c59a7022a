"""InternVideo2's names of weights, in VideoChat-Flash's and TimeViper's checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from timeviper_fast.checkpoint.mapping import NameMap, Piece, block_names
from timeviper_fast.config import VisionConfig

__all__ = ["internvideo2_names"]

_STEM = (
    "cls_token",
    "pos_embed",
    "img_pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
)
_BLOCK = {
    **{
        name: name
        for name in (
            "norm1.weight", "attn.qkv.weight", "attn.q_norm.weight", "attn.k_norm.weight",
            "attn.proj.weight", "attn.proj.bias", "ls1.weight", "norm2.weight", "mlp.fc1.weight",
            "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "ls2.weight",
        )
    },
    # the encoder's own files
    **{f"ls{i}.gamma": f"ls{i}.weight" for i in (1, 2)},
}  # fmt: skip


def internvideo2_names(config: VisionConfig) -> NameMap:
    """InternVideo2 weights; blocks behind the feature layer are ignored."""
    block = block_names(config, _BLOCK)

    def translate(key: str) -> Sequence[Piece] | None:
        return (Piece(key),) if key in _STEM else block(key)

    return translate
