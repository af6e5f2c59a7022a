"""Qwen2 and Qwen2.5 in Hugging Face's format: config.json, and the names of the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from timeviper_fast.checkpoint.mapping import NameMap, Piece, transv_names
from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.errors import fail, not_built

__all__ = ["qwen2_config_from_hf", "qwen2_names"]

# our field -> its name in config.json, and the default of transformers' Qwen2Config
_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 151936),
    "hidden_size": ("hidden_size", 4096),
    "intermediate_size": ("intermediate_size", 22016),
    "num_attention_heads": ("num_attention_heads", 32),
    "num_key_value_heads": ("num_key_value_heads", 32),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_word_embeddings": ("tie_word_embeddings", False),
    "max_position_embeddings": ("max_position_embeddings", 32768),
}
_SERVED = {
    "hidden_act": ("silu",),
    # a sliding window is ignored unless it is switched on
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}


def qwen2_config_from_hf(config: Mapping[str, Any]) -> BackboneConfig:
    """The language model's shape, from the contents of a config.json with Qwen2's keys.

    `lm_head` may be stored although `tie_word_embeddings` is true; `load.py` looks.

    Raises:
        ValueError: a value breaks a rule.
        NotImplementedError: a legal value that this backbone does not serve.
    """
    for name, served in _SERVED.items():
        if config.get(name, served[0]) not in served:
            not_built(
                "config.json", name, f"be {served[0]!r} (nothing else is built)", config[name]
            )
    values = {ours: config.get(name, default) for ours, (name, default) in _FIELDS.items()}
    heads, width = values["num_attention_heads"], values["hidden_size"]
    blocks = config.get("num_hidden_layers", 32)
    for name, number in (("num_hidden_layers", blocks), ("num_attention_heads", heads)):
        if type(number) is not int or number < 1:
            fail("config.json", name, "be a positive integer", number)
    if type(width) is not int or width % heads:
        fail("config.json", "hidden_size", f"be a multiple of num_attention_heads ({heads})", width)
    # transformers 5 writes the base among the rotary parameters
    theta = config.get("rope_theta")
    for name in ("rope_scaling", "rope_parameters"):
        rotary = config.get(name) or {}
        if not isinstance(rotary, Mapping):
            fail("config.json", name, "be an object or null", rotary)
        if rotary.get("rope_type", rotary.get("type", "default")) != "default":
            rule = "be None or of the rope_type 'default' (nothing else is built)"
            not_built("config.json", name, rule, rotary)
        theta = rotary.get("rope_theta") if theta is None else theta
    theta = 10000.0 if theta is None else theta
    return BackboneConfig(
        **values,
        pattern="*-" * blocks,
        head_dim=config.get("head_dim") or width // heads,
        attention_bias=True,
        family="qwen2",
        rope_theta=float(theta) if type(theta) in (int, float) else theta,
        eos_token_ids=token_ids("eos_token_id", config.get("eos_token_id")),
    )


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """A token id, a list of them, or null."""
    ids = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        fail("config.json", name, "be a token id or a list of them", value)
    return tuple(ids)


_TOP = {
    "model.embed_tokens.weight": "embeddings.weight",
    "model.norm.weight": "norm_f.weight",
    "lm_head.weight": "lm_head.weight",
}
_IN_BLOCK = re.compile(
    r"model\.layers\.(\d+)\.(?:(input_layernorm|post_attention_layernorm)|(self_attn|mlp)\.(\w+))"
    r"\.(weight|bias)"
)


def qwen2_names(stages: Sequence[CompressionStage] = ()) -> NameMap:
    """Qwen2's weights of Hugging Face, and upstream TimeViper's TransV beside them.

    Block N is our layers 2 N (attention) and 2 N + 1 (MLP). Tables of rotary positions are ignored.
    """
    transv = transv_names(stages)

    def translate(key: str) -> Sequence[Piece] | None:
        if key in _TOP:
            return (Piece(_TOP[key]),)
        if key.endswith("rotary_emb.inv_freq"):
            return ()
        match = _IN_BLOCK.fullmatch(key)
        if match is None:
            return transv(key.removeprefix("model.")) if key.startswith("model.") else None
        block, norm, part, linear, leaf = match.groups()
        layer = 2 * int(block) + ((norm or part) in ("post_attention_layernorm", "mlp"))
        return (Piece(f"layers.{layer}.{'norm' if norm else f'mixer.{linear}'}.{leaf}"),)

    return translate
