"""SigLIP in Hugging Face's or timm's format: its config.json, and the names of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from timeviper_fast.checkpoint.mapping import NameMap, Piece
from timeviper_fast.config import VisionConfig
from timeviper_fast.errors import fail

__all__ = ["vision_config_from_hf", "vision_names"]

# defaults of transformers' SiglipVisionConfig, for keys that the file leaves out
_HF_SIGLIP_DEFAULTS = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}


def vision_config_from_hf(config: Mapping[str, Any]) -> VisionConfig:
    """The vision tower's shape, from the contents of a SigLIP config.json (whole or vision only).

    Raises:
        ValueError: not a SigLIP config, or a value breaks a rule.
    """
    kind = config.get("model_type")
    if kind not in ("siglip", "siglip_vision_model"):
        fail("config.json", "model_type", "be 'siglip' or 'siglip_vision_model'", kind)
    tower = config.get("vision_config", {}) if kind == "siglip" else config
    if not isinstance(tower, Mapping):
        fail("config.json", "vision_config", "be an object with fields", tower)
    return VisionConfig(**{k: tower.get(k, value) for k, value in _HF_SIGLIP_DEFAULTS.items()})


_PATCHES, _POSITIONS = "patch_embed.proj", "pos_embed"
_VISION_STEM = {
    **{f"{_PATCHES}.{leaf}": f"{_PATCHES}.{leaf}" for leaf in ("weight", "bias")},
    **{f"embeddings.patch_embedding.{leaf}": f"{_PATCHES}.{leaf}" for leaf in ("weight", "bias")},
    _POSITIONS: _POSITIONS,
    "embeddings.position_embedding.weight": _POSITIONS,
}
_VISION_BLOCK = {
    **{name: name for name in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")},
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
}
_VISION_QKV = {f"self_attn.{letter}_proj": i for i, letter in enumerate("qkv")}
# weights behind the feature layer, and of SigLIP's text side
_VISION_UNUSED = re.compile(
    r"(norm|attn_pool|fc_norm|post_layernorm|head|text_model)\.|logit_(scale|bias)$"
    r"|embeddings\.position_ids$"
)


def vision_names(config: VisionConfig) -> NameMap:
    """SigLIP weights under timm's names or Hugging Face's, with or without `vision_model.`.

    Blocks behind the feature layer, the final norm, the pooling head and the text side are
    ignored: features are taken before them.
    """

    def translate(key: str) -> Sequence[Piece] | None:
        key = key.removeprefix("vision_model.")
        if _VISION_UNUSED.match(key):
            return ()
        if key in _VISION_STEM:
            return (Piece(_VISION_STEM[key]),)
        match = re.fullmatch(r"(?:blocks|encoder\.layers)\.(\d+)\.(.+)\.(weight|bias)", key)
        if match is None:
            return None
        block, module, leaf = int(match[1]), match[2], match[3]
        if config.num_blocks <= block < config.num_hidden_layers:
            return ()
        if module in _VISION_QKV:
            return (Piece(f"blocks.{block}.attn.qkv.{leaf}", put=(_VISION_QKV[module], 3)),)
        ours = _VISION_BLOCK.get(module)
        return ours and (Piece(f"blocks.{block}.{ours}.{leaf}"),)  # type: ignore[return-value]

    return translate
