"""Other projects' words in ours: configurations, one-line specifiers and weight names.

Pure translation, nothing is read here. Together with `checkpoint.py` this is the only room that
knows how Hugging Face, timm and upstream TimeViper spell things.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, NamedTuple, NoReturn

from timeviper_fast.config import (
    ATTENTION,
    MAMBA,
    MLP,
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.errors import fail
from timeviper_fast.presets import VISION_PRESETS

__all__ = [
    "NameMap",
    "Piece",
    "backbone_config_from_hf",
    "llm_names",
    "own_names",
    "projector_from_upstream",
    "projector_names",
    "stages_from_hf",
    "stages_from_upstream",
    "under",
    "vision_config_from_hf",
    "vision_from_upstream",
    "vision_names",
    "vlm_names",
]


def _not_built(owner: str, name: str, rule: str, value: Any) -> NoReturn:
    raise NotImplementedError(f"{owner}: {name} must {rule}, got {value!r}")


# ours: theirs, wherever a field has several names or another one
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
}
# what a missing key means to the class that wrote the file, where it differs from our defaults
_HF_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "mamba_head_dim": 64,
    "max_position_embeddings": 4096,
}
_SERVED = {
    "mlp_hidden_act": ("relu2",),
    "mamba_hidden_act": ("silu", "swish"),
    "residual_in_fp32": (False,),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
_LETTERS = {
    **dict.fromkeys(("M", "mamba", "linear_attention"), MAMBA),
    **dict.fromkeys(("*", "attention", "full_attention"), ATTENTION),
    **dict.fromkeys(("-", "mlp"), MLP),
}


def backbone_config_from_hf(config: Mapping[str, Any]) -> BackboneConfig:
    """The language model's shape, from the contents of a Hugging Face config.json.

    Every spelling of the Nemotron-H family is read (model_type "nemotron_h", or upstream
    TimeViper's "nano"); a missing key means what it means to that class. dt is clamped by
    `time_step_limit` alone, never by `time_step_min`, which only serves initialisation.

    Raises:
        ValueError: a value breaks a rule, or two spellings of one field disagree.
        NotImplementedError: a legal value that this backbone does not serve.
    """
    owner, kind = "config.json", config.get("model_type", "nemotron_h")
    if kind not in ("nemotron_h", "nano"):
        fail(owner, "model_type", "be 'nemotron_h' or 'nano'", kind)
    for name, served in _SERVED.items():
        if config.get(name, served[0]) not in served:
            _not_built(owner, name, f"be {served[0]!r} (nothing else is built)", config[name])
    values: dict[str, Any] = dict(_HF_DEFAULTS, chunk_size=256 if kind == "nano" else 128)
    for field in fields(BackboneConfig):
        values |= _read_field(config, field.name, field.default)
    if "pattern" not in values:
        fail(owner, "hybrid_override_pattern", "be given", None)
    if config.get("num_key_value_heads", 0) is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    layers = config.get("num_hidden_layers", len(values["pattern"]))
    if layers != len(values["pattern"]):
        rule = f"equal the {len(values['pattern'])} layers of the pattern"
        fail(owner, "num_hidden_layers", rule, layers)
    return BackboneConfig(**values)


def _read_field(config: Mapping[str, Any], field: str, default: Any) -> dict[str, Any]:
    """{field: value} under whichever spelling it has; empty when there is none."""
    found = {
        name: _normalise(field, name, config[name], default)
        for name in _ALIASES.get(field, (field,))
        # null means absent, but for "no such token"
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
    """A float, also as "inf", "Infinity" or {"__float__": "Infinity"}."""
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
        if layer in ("moe", "E"):
            rule = "hold mamba, attention and mlp layers only (moe layers are not built)"
            _not_built("config.json", name, rule, layer)
        if layer not in _LETTERS:
            fail("config.json", name, f"hold only {', '.join(_LETTERS)}", layer)
    return "".join(_LETTERS[layer] for layer in layers)


def stages_from_upstream(pdrop_type: str, merge_module: str) -> tuple[CompressionStage, ...]:
    """Upstream's stage grammar: TYPE_LAYER_RATIO joined by "-", as "uni_7_0.5-attn_39_0.1".

    RATIO is the fraction of the original vision tokens that STAYS (the paper writes what is
    dropped). TYPE counts by what it contains: `attn` selects by attention, else `uni` uniformly;
    `drop` never transfers. `merge_module` is "CrossAttention" (transfer) or "no_merge".

    Raises:
        ValueError: naming the stage, the rule and the value.
    """
    if merge_module not in ("CrossAttention", "no_merge"):
        fail("upstream", "merge_module", "be 'CrossAttention' or 'no_merge'", merge_module)
    transfers = merge_module == "CrossAttention"
    return tuple(_stage(text, transfers) for text in pdrop_type.split("-"))


def _stage(text: str, transfers: bool) -> CompressionStage:
    form = "be stages of the form TYPE_LAYER_RATIO joined by '-' (as uni_7_0.5-attn_39_0.1)"
    kind, *numbers = text.split("_")
    try:
        layer, keep = int(numbers[0]), float(numbers[1])
    except (IndexError, ValueError):
        fail("upstream", "pdrop_type", form, text)
    if len(numbers) != 2:
        fail("upstream", "pdrop_type", form, text)
    if "attn" not in kind and "uni" not in kind:
        fail("upstream", "pdrop_type", "have stage types that contain attn or uni", text)
    try:
        return CompressionStage(
            layer,
            "attention" if "attn" in kind else "uniform",
            keep,
            transfer=transfers and "drop" not in kind,
        )
    except ValueError as error:
        raise ValueError(f"upstream: pdrop_type stage {text!r}: {error}") from None


def stages_from_hf(config: Mapping[str, Any]) -> tuple[CompressionStage, ...]:
    """The stages that upstream stored beside the language model in config.json; () if none."""
    if config.get("use_pdrop") not in (True, False, None):
        fail("config.json", "use_pdrop", "be true or false", config["use_pdrop"])
    if not config.get("use_pdrop"):
        return ()
    return stages_from_upstream(
        str(config.get("pdrop_type")), str(config.get("merge_module", "no_merge"))
    )


def projector_from_upstream(arch_specifier: str) -> ProjectorConfig:
    """Upstream's projector specifier: gelu_mlp, tome_mlp-N or fused_tome_mlp-N (N per frame).

    Raises:
        ValueError: another specifier.
    """
    if "gelu_mlp" in arch_specifier:
        return ProjectorConfig(kind="gelu_mlp")
    match = re.fullmatch(r"(tome_mlp|fused_tome_mlp)-([1-9]\d*)", arch_specifier)
    if match is None:
        rule = "be gelu_mlp, tome_mlp-N or fused_tome_mlp-N with N tokens per frame"
        fail("upstream", "arch_specifier", rule, arch_specifier)
    return ProjectorConfig(kind=match[1], num_tokens=int(match[2]))


def vision_from_upstream(vision_backbone_id: str) -> VisionConfig:
    """Upstream's vision backbone ids, for the SigLIP family (timm weights: exact GELU).

    Raises:
        NotImplementedError: one of upstream's other encoders, or a pair of encoders.
        ValueError: no such id.
    """
    owner, name, rule = "upstream", "vision_backbone_id", f"be one of {', '.join(VISION_PRESETS)}"
    if vision_backbone_id in VISION_PRESETS:
        return VISION_PRESETS[vision_backbone_id]
    if re.match(r"dino|internvideo", vision_backbone_id) or "+" in vision_backbone_id:
        _not_built(owner, name, f"{rule} (no other encoder is built)", vision_backbone_id)
    fail(owner, name, rule, vision_backbone_id)


# what a missing key means to transformers' SiglipVisionConfig; all but the last are our names too
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


class Piece(NamedTuple):
    """Where one stored tensor goes.

    Attributes:
        name: our name of the parameter.
        put: (i, n): it fills the i-th of n equal parts of the parameter's first dimension.
        take: (i, n): only entry i of its first dimension, which has n entries, is taken.
    """

    name: str
    put: tuple[int, int] | None = None
    take: tuple[int, int] | None = None


# stored name -> where it goes; () is ignored on purpose, None is not expected at all
NameMap = Callable[[str], Sequence[Piece] | None]


def own_names(key: str) -> Sequence[Piece]:
    """Our own format: every tensor goes to the parameter of its name."""
    return (Piece(key),)


def under(prefix: str, names: NameMap) -> NameMap:
    """The same map for a part that lives under `prefix` ("backbone.") in a larger module."""

    def translate(key: str) -> Sequence[Piece] | None:
        pieces = names(key)
        return pieces and tuple(p._replace(name=prefix + p.name) for p in pieces)

    return translate


def llm_names(stages: Sequence[CompressionStage] = ()) -> NameMap:
    """Nemotron-H weights of Hugging Face (`backbone.` or `model.`) and upstream's TransV beside
    them. Heads for multi-token prediction (`mtp.`) are ignored.

    Upstream's `alpha` holds one number per stage that transfers, in order.
    """
    transfers = [i for i, stage in enumerate(stages) if stage.transfer]

    def translate(key: str) -> Sequence[Piece] | None:
        if key == "lm_head.weight":
            return (Piece(key),)
        root, _, name = key.partition(".")
        if root == "mtp":
            return ()
        part = name.partition(".")[0]
        if root not in ("backbone", "model"):
            return None
        if name == "alpha" and stages:
            n = len(transfers)
            return tuple(Piece(f"transv.{s}.alpha", take=(i, n)) for i, s in enumerate(transfers))
        if part == "merge_modules":
            return (Piece(name.replace("merge_modules.", "transv.", 1)),)
        if part == "embedding":
            return (Piece(name.replace("embedding.", "embeddings.", 1)),)
        return (Piece(name),) if part in ("embeddings", "layers", "norm_f") else None

    return translate


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
# behind the feature layer, or of SigLIP's text side
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


def projector_names(key: str) -> Sequence[Piece] | None:
    """Upstream's projector: `projector.{0,2,4}.{weight,bias}`."""
    match = re.fullmatch(r"projector\.(\d+\.(?:weight|bias))", key)
    return (Piece(f"layers.{match[1]}"),) if match else None


def vlm_names(config: TimeViperConfig) -> NameMap:
    """Upstream's flat state dict of the whole model, with or without `module.` in front."""
    parts = {
        "vision_backbone.featurizer.": under("vision.", vision_names(config.vision)),
        "projector.": under("projector.", projector_names),
        "llm_backbone.llm.": under("backbone.", llm_names(config.stages)),
    }

    def translate(key: str) -> Sequence[Piece] | None:
        key = key.removeprefix("module.")
        for prefix, names in parts.items():
            if key.startswith(prefix):
                return names(key.removeprefix(prefix))
        return None

    return translate
