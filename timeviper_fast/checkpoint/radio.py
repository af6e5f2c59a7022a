"""C-RADIO's names of weights."""

from __future__ import annotations

from collections.abc import Sequence

from timeviper_fast.checkpoint.mapping import NameMap, Piece, block_names
from timeviper_fast.config import VisionConfig

__all__ = ["radio_names"]

_STEM = {
    "embedder.weight": "patch_embed.proj.weight",
    "video_embedder.weight": "video_embed.proj.weight",
    "pos_embed": "pos_embed",
    "cls_token.token": "prefix",
}
_LINEAR = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_BLOCK = {f"{name}.{leaf}": f"{name}.{leaf}" for name in _LINEAR for leaf in ("weight", "bias")}


def radio_names(config: VisionConfig) -> NameMap:
    """C-RADIO's weights. The pixels' means and deviations (`input_conditioner`) and the list of
    summary tokens (`summary_idxs`) are ignored: config.json has the first, nothing reads the
    second."""
    block = block_names(config, _BLOCK)

    def translate(key: str) -> Sequence[Piece] | None:
        if key.startswith("input_conditioner.") or key == "summary_idxs":
            return ()
        name = key.removeprefix("model.")
        if name == key:
            return None
        ours = _STEM.get(name.removeprefix("patch_generator."))
        return block(name) if ours is None else (Piece(ours),)

    return translate
