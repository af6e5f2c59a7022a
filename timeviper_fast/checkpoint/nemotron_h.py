"""Nemotron-H in Hugging Face's format: its config.json, and the names of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from timeviper_fast.checkpoint.mapping import NameMap, Piece, transv_names
from timeviper_fast.config import (
    ATTENTION,
    EXPERTS,
    MAMBA,
    MLP,
    BackboneConfig,
    CompressionStage,
)
from timeviper_fast.errors import fail, not_built

__all__ = ["backbone_config_from_hf", "llm_names"]

# our field -> its names in config.json, where they differ from ours
_ALIASES = {
    "pattern": ("hybrid_override_pattern", "layers_block_type", "layer_types"),
    "head_dim": ("head_dim", "attention_head_dim"),
    "n_groups": ("n_groups", "mamba_n_groups", "mamba_num_groups"),
    "ssm_state_size": ("ssm_state_size", "mamba_state_dim"),
    "conv_kernel": ("conv_kernel", "mamba_d_conv"),
    "chunk_size": ("chunk_size", "mamba_chunk_size"),
    "norm_eps": ("layer_norm_epsilon", "rms_norm_eps", "norm_eps"),
    "use_conv_bias": ("use_conv_bias", "mamba_conv_bias"),
    "mamba_proj_bias": ("use_bias", "mamba_proj_bias"),
    "time_step_limit": ("time_step_limit", "mamba_dt_limit"),
    "time_step_min": ("time_step_min", "mamba_dt_min"),
    "time_step_max": ("time_step_max", "mamba_dt_max"),
    "time_step_floor": ("time_step_floor", "mamba_dt_init_floor"),
    "eos_token_ids": ("eos_token_id",),
    "num_experts": ("n_routed_experts", "num_local_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "expert_size": ("moe_intermediate_size",),
    "shared_expert_size": ("moe_shared_expert_intermediate_size",),
    "expert_latent_size": ("moe_latent_size",),
    "expert_groups": ("n_group",),
    "best_expert_groups": ("topk_group",),
    "normalize_expert_weights": ("norm_topk_prob",),
    "expert_scale": ("routed_scaling_factor",),
}
# defaults of the class that wrote the file, where they differ from ours
_HF_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "mamba_head_dim": 64,
    "max_position_embeddings": 4096,
}
_HF_EXPERTS = {
    "num_experts": 8,
    "experts_per_token": 2,
    "expert_size": 7688,
    "shared_expert_size": 7688,
}
_SERVED = {
    "mlp_hidden_act": ("relu2",),
    "mamba_hidden_act": ("silu", "swish"),
    "residual_in_fp32": (False,),
    "sliding_window": (None,),
    "n_shared_experts": (1,),
    "quantization_config": (None,),
}
# fields that this family does not have; some files carry an unused rope_theta
_NOT_READ = ("family", "rope_theta")
_OF_EXPERTS = (
    *_HF_EXPERTS,
    "expert_latent_size",
    "expert_groups",
    "best_expert_groups",
    "normalize_expert_weights",
    "expert_scale",
)
_LETTERS = {
    **dict.fromkeys(("M", "mamba", "linear_attention"), MAMBA),
    **dict.fromkeys(("*", "attention", "full_attention"), ATTENTION),
    **dict.fromkeys(("-", "mlp"), MLP),
    **dict.fromkeys(("E", "moe"), EXPERTS),
}


# layers.N.mixer.experts.E.up_proj.weight
_EXPERT = re.compile(r"(layers\.\d+\.mixer\.experts\.)(\d+)\.((?:up|down)_proj)\.weight")


def backbone_config_from_hf(config: Mapping[str, Any]) -> BackboneConfig:
    """The language model's shape, from the contents of a Hugging Face config.json.

    Every spelling of the Nemotron-H family is read (model_type "nemotron_h", or upstream
    TimeViper's "nano"), and a missing key has that class's default. dt is clamped by
    `time_step_limit` alone; `time_step_min` is used for initialisation only.

    Raises:
        ValueError: a value breaks a rule, or two spellings of one field disagree.
        NotImplementedError: a legal value that this backbone does not serve.
    """
    owner, kind = "config.json", config.get("model_type", "nemotron_h")
    if kind not in ("nemotron_h", "nano"):
        fail(owner, "model_type", "be 'nemotron_h' or 'nano'", kind)
    for name, served in _SERVED.items():
        if config.get(name, served[0]) not in served:
            not_built(owner, name, f"be {served[0]!r} (nothing else is built)", config[name])
    values: dict[str, Any] = dict(_HF_DEFAULTS, chunk_size=256 if kind == "nano" else 128)
    values |= _read_field(config, "pattern", None)
    if "pattern" not in values:
        fail(owner, "hybrid_override_pattern", "be given", None)
    # dense files may carry the keys of experts, which say nothing there
    experts = EXPERTS in values["pattern"]
    values |= _HF_EXPERTS if experts else {}
    for field in fields(BackboneConfig):
        if field.name not in _NOT_READ and (experts or field.name not in _OF_EXPERTS):
            values |= _read_field(config, field.name, field.default)
    if config.get("num_key_value_heads", 0) is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    layers = config.get("num_hidden_layers", len(values["pattern"]))
    if layers != len(values["pattern"]):
        rule = f"equal the {len(values['pattern'])} layers of the pattern"
        fail(owner, "num_hidden_layers", rule, layers)
    return BackboneConfig(**values)


def _read_field(config: Mapping[str, Any], field: str, default: Any) -> dict[str, Any]:
    """{field: value}, read under any of the field's names; empty if the file has none of them."""
    found = {
        name: _normalise(field, name, config[name], default)
        for name in _ALIASES.get(field, (field,))
        # null counts as absent, except for eos_token_id, where it means "no such token"
        if name in config and (config[name] is not None or field == "eos_token_ids")
    }
    (first, value), *others = found.items() or [(field, None)]
    for name, other in others:
        if other != value:
            rule = f"equal {first} ({config[first]!r}), another name of the same field"
            fail("config.json", name, rule, config[name])
    return {field: value} if found else {}


def _normalise(field: str, name: str, value: Any, default: Any) -> Any:
    if field == "pattern":
        return _pattern(name, value)
    if field == "time_step_limit":
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            fail("config.json", name, "be a pair (low, high)", value)
        return tuple(_number(name, bound) for bound in value)
    if field == "eos_token_ids":
        ids = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            fail("config.json", name, "be a token id or a list of them", value)
        return tuple(ids)
    if isinstance(default, bool) and not isinstance(value, bool):
        fail("config.json", name, "be true or false", value)
    return _number(name, value) if isinstance(default, float) else value


def _number(name: str, value: Any) -> float:
    """A float, also written as "inf", "Infinity" or {"__float__": "Infinity"}."""
    text = value.get("__float__") if isinstance(value, Mapping) else value
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(text, bool):
            return float(text)  # type: ignore[arg-type]
    fail("config.json", name, "be a number", value)


def _pattern(name: str, value: Any) -> str:
    if not isinstance(value, (str, list, tuple)):
        fail("config.json", name, "be a string or a list of layer types", value)
    layers = [str(layer) for layer in value]
    for layer in layers:
        if layer not in _LETTERS:
            fail("config.json", name, f"hold only {', '.join(_LETTERS)}", layer)
    return "".join(_LETTERS[layer] for layer in layers)


def llm_names(stages: Sequence[CompressionStage] = (), experts: int = 0) -> NameMap:
    """Nemotron-H weights of Hugging Face (`backbone.` or `model.`) and upstream's TransV beside
    them. Heads for multi-token prediction (`mtp.`) are ignored.

    Args:
        stages: whose TransV the files may hold.
        experts: routed experts of a layer; files hold them one by one, the model stacked.
    """
    transv = transv_names(stages)

    def translate(key: str) -> Sequence[Piece] | None:
        if key == "lm_head.weight":
            return (Piece(key),)
        root, _, name = key.partition(".")
        if root == "mtp":
            return ()
        part = name.partition(".")[0]
        if root not in ("backbone", "model"):
            return None
        if (transfer := transv(name)) is not None:
            return transfer
        if part == "embedding":
            return (Piece(name.replace("embedding.", "embeddings.", 1)),)
        if match := _EXPERT.fullmatch(name):
            own = int(match[2]) < experts
            return (Piece(match[1] + match[3], put=(int(match[2]), experts)),) if own else None
        return (Piece(name),) if part in ("embeddings", "layers", "norm_f") else None

    return translate
