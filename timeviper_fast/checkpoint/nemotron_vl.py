"""NVIDIA's hybrid video models as released: Nemotron-Nano-12B-v2-VL and Nemotron-3-Nano-Omni."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

from timeviper_fast.checkpoint.encoder import encoder_names
from timeviper_fast.checkpoint.files import open_weights, refuse_pickles, weight_files
from timeviper_fast.checkpoint.mapping import NameMap, Piece, under
from timeviper_fast.checkpoint.nemotron_h import backbone_config_from_hf, llm_names
from timeviper_fast.checkpoint.qwen2 import token_ids
from timeviper_fast.config import (
    EXPERTS,
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.errors import SHARE, CheckpointError, fail, not_built
from timeviper_fast.presets import PRESETS

__all__ = ["ARCHITECTURES", "check_vl", "vl_config", "vl_names"]

ARCHITECTURES = ("NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3")
_FILE, _QUANTISED = "config.json", "hf_quant_config.json"
_TOWER = "vision_model.radio_model."
_SERVED: dict[str, tuple[Any, ...]] = {
    "ps_version": ("v2",),
    "downsample_ratio": (0.5,),
}
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_NANO, _OMNI = (PRESETS[n] for n in ("nemotron-nano-12b-v2-vl", "nemotron-3-nano-omni-30b-a3b"))
# the encoders that args.model names
_ENCODERS = {"vit_huge_patch16_224": _NANO.vision}
_HEAD = "language_model.lm_head.weight"
_SCALE = re.compile(re.escape(_TOWER) + r"model\.blocks\.\d+\.ls[12](\.\w+)?")

Shapes = Mapping[str, tuple[int, ...]]


def vl_config(
    values: Mapping[str, Any], generation: Mapping[str, Any], shapes: Shapes
) -> TimeViperConfig:
    """The whole model's shape and its defaults of asking.

    Sizes are read off the stored tensors: config.json does not state the encoder's, and its
    vocabulary may be smaller than the embedding. The language model, not the architecture's name,
    tells the two models apart.

    Args:
        values: contents of config.json.
        generation: contents of generation_config.json; empty if there is none.
        shapes: of the stored tensors, by name; empty before they are downloaded. Sizes are then
            those of config.json, or else of the released models.

    Raises:
        ValueError: a value breaks a rule.
        NotImplementedError: a legal value that nothing serves.
    """
    for name, served in _SERVED.items():
        if values.get(name, served[0]) not in served:
            not_built(_FILE, name, f"be {served[0]!r} (nothing else is built)", values[name])
    for part in (values, _object(values, "llm_config"), _object(values, "vision_config")):
        if part.get("quantization_config") is not None:
            rule = "be absent (FP8, NVFP4 and other quantised weights are not served; BF16 is)"
            not_built(_FILE, "quantization_config", rule, part["quantization_config"])
    backbone = _backbone(values, generation, shapes)
    inner = shapes.get("mlp1.1.weight", (values.get("projector_hidden_size", 20480),))[0]
    usual = _OMNI if EXPERTS in backbone.pattern else _NANO
    return replace(
        usual,
        backbone=backbone,
        vision=_tower(values, shapes),
        projector=ProjectorConfig(kind="pixel_shuffle_mlp", inner_size=inner),
        stages=_stages(values),
        repetition_penalty=generation.get("repetition_penalty") or 1.0,
    )


def _backbone(
    values: Mapping[str, Any], generation: Mapping[str, Any], shapes: Shapes
) -> BackboneConfig:
    told = _object(values, "llm_config")
    llm = backbone_config_from_hf(told)
    ends = (*llm.eos_token_ids, *token_ids("eos_token_id", generation.get("eos_token_id")))
    embedding = shapes.get("language_model.backbone.embeddings.weight", (llm.vocab_size,))
    longest = told.get("max_position_embeddings") or values.get("max_sequence_length")
    # where config.json says that they are apart, a missing lm_head is a missing tensor
    may_tie = told.get("tie_word_embeddings") is not False
    return replace(
        llm,
        vocab_size=embedding[0],
        tie_word_embeddings=may_tie and bool(shapes) and _HEAD not in shapes,
        max_position_embeddings=longest or llm.max_position_embeddings,
        eos_token_ids=tuple(dict.fromkeys(ends)),
    )


def _tower(values: Mapping[str, Any], shapes: Shapes) -> VisionConfig:
    told = _object(values, "vision_config")
    stored = _stored_sizes(shapes) if shapes else {}
    for name in _SIZES:
        if told.get(name, stored.get(name)) != stored.get(name, told.get(name)):
            rule = f"be {stored[name]}, as in the stored weights"
            fail(_FILE, f"vision_config.{name}", rule, told[name])
    sizes = _told_sizes(values, told) | stored
    if sizes["num_attention_heads"] is None:
        rule = f"be one of {', '.join(_ENCODERS)}, or num_attention_heads be given beside args"
        fail(_FILE, "vision_config.args.model", rule, _args(told).get("model"))
    usual = _tower_like(told)
    size = values.get("force_image_size", told.get("image_size", usual.image_size))
    target = _told(told, "video_target_num_patches")
    if type(target) is int and target > 0:
        size = isqrt(target) * sizes["patch_size"]
    aspect = usual is _OMNI.vision and _told(told, "video_maintain_aspect_ratio") is not False
    return replace(
        usual,
        image_size=size,
        image_mean=_triple(values.get("norm_mean", usual.image_mean)),
        image_std=_triple(values.get("norm_std", usual.image_std)),
        resize="float_aspect" if aspect else "float",
        **sizes,
    )


def _tower_like(told: Mapping[str, Any]) -> VisionConfig:
    """The released encoder that has these keys: the older one has neither of them."""
    keys = ("video_target_num_patches", "video_temporal_patch_size")
    return (_OMNI if any(_told(told, key) for key in keys) else _NANO).vision


def _told(told: Mapping[str, Any], name: str) -> Any:
    """A value of vision_config, which may also stand among its args."""
    return told.get(name, _args(told).get(name))


def _args(told: Mapping[str, Any]) -> Mapping[str, Any]:
    args = told.get("args")
    return args if isinstance(args, Mapping) else {}


def _triple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _told_sizes(values: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the encoder in config.json, or else those of the released one."""
    known = _ENCODERS.get(str(_args(told).get("model")))
    sizes = {name: told.get(name, getattr(known, name, None)) for name in _SIZES}
    return sizes | {
        "patch_size": values.get("patch_size", _NANO.vision.patch_size),
        "clip_frames": _told(told, "video_temporal_patch_size") or 1,
    }


def _stored_sizes(shapes: Shapes) -> dict[str, Any]:
    """Sizes of the encoder, all but the number of heads, read off its tensors."""
    stem = f"{_TOWER}model."
    width, inputs = _shape(shapes, f"{stem}patch_generator.embedder.weight")
    video = shapes.get(f"{stem}patch_generator.video_embedder.weight", (width, inputs))
    found = [re.match(re.escape(stem) + r"blocks\.(\d+)\.", name) for name in shapes]
    return {
        "hidden_size": width,
        "intermediate_size": _shape(shapes, f"{stem}blocks.0.mlp.fc1.weight")[0],
        "num_hidden_layers": 1 + max(int(match[1]) for match in found if match),
        "patch_size": isqrt(inputs // 3),
        "clip_frames": video[1] // inputs,
        "register_tokens": _shape(shapes, f"{stem}patch_generator.cls_token.token")[-2],
        "position_side": isqrt(_shape(shapes, f"{stem}patch_generator.pos_embed")[-2]),
    }


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    if not isinstance(found, Mapping):
        fail(_FILE, name, "be an object with fields", found)
    return found


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    found = shapes.get(name)
    if found is None or len(found) < 2:
        raise CheckpointError("load_weights", name, "be stored as a matrix", found or "nothing")
    return found


def _stages(values: Mapping[str, Any]) -> tuple[CompressionStage, ...]:
    """The pruning by content that the model was trained with (efficient video sampling)."""
    prune = values.get("video_pruning_rate")
    if prune is None or prune == 0:
        return ()
    if not SHARE.holds(prune):
        fail(_FILE, "video_pruning_rate", SHARE.rule, prune)
    return (CompressionStage(0, "content", 1.0, transfer=False, prune=prune),)


def vl_names(config: TimeViperConfig) -> NameMap:
    """Names of all weights: of the encoder, the projector and the language model.

    Audio (`sound_`) and heads for multi-token prediction (`mtp.`) are ignored, and layer scales of
    the encoder, which `check_vl` has read.
    """
    parts = {
        _TOWER: under("vision.", encoder_names(config.vision)),
        "mlp1.": under("projector.", _projector_names),
        "language_model.": under("backbone.", llm_names(experts=config.backbone.num_experts)),
    }

    def translate(key: str) -> Sequence[Piece] | None:
        if key.startswith(("sound_", "mtp.")) or _SCALE.fullmatch(key):
            return ()
        for prefix, names in parts.items():
            if key.startswith(prefix):
                return names(key.removeprefix(prefix))
        return None

    return translate


def _projector_names(key: str) -> Sequence[Piece] | None:
    return (Piece(f"layers.{key}"),) if key in ("0.weight", "1.weight", "3.weight") else None


def check_vl(directory: Path) -> None:
    """Check what the names of the stored tensors do not tell: whether layer scales of the encoder,
    which the released models lack, change nothing, and that nothing is pickled or quantised.

    Raises:
        CheckpointError: a layer scale holds other values than ones, a file is pickled, or the
            weights are quantised.
    """
    if (directory / _QUANTISED).is_file():
        rule = "lie without it (quantised weights are not served; the BF16 files are)"
        raise CheckpointError("load_weights", "weights", rule, f"{directory / _QUANTISED}")
    refuse_pickles(directory)
    for path in weight_files(directory):
        with open_weights(path) as (entries, read):
            for name in filter(_SCALE.fullmatch, entries):
                if not bool((read(name) == 1).all()):
                    rule = "hold ones only (this encoder has no layer scales)"
                    raise CheckpointError("load_weights", name, rule, "other values")
