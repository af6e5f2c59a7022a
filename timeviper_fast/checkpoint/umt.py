"""UMT's names of weights, in VideoChat-Flash's checkpoints and in the encoder's own files."""

from __future__ import annotations

from collections.abc import Sequence

from timeviper_fast.checkpoint.mapping import NameMap, Piece, block_names
from timeviper_fast.config import VisionConfig

__all__ = ["umt_names"]

_STEM = {
    **{f"patch_embed.proj.{leaf}": f"patch_embed.proj.{leaf}" for leaf in ("weight", "bias")},
    **{f"vision_layernorm.{leaf}": f"vision_layernorm.{leaf}" for leaf in ("weight", "bias")},
    # the encoder's own files
    **{f"norm.{leaf}": f"vision_layernorm.{leaf}" for leaf in ("weight", "bias")},
}
_BLOCK = {
    name: name
    for name in (
        "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.q_bias", "attn.v_bias",
        "attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight",
        "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
    )
}  # fmt: skip


def umt_names(config: VisionConfig) -> NameMap:
    """UMT weights, with or without `encoder.`; blocks behind the feature layer are ignored."""
    block = block_names(config, _BLOCK)

    def translate(key: str) -> Sequence[Piece] | None:
        key = key.removeprefix("encoder.")
        return (Piece(_STEM[key]),) if key in _STEM else block(key)

    return translate
