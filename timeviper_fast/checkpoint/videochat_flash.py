"""VideoChat-Flash's released checkpoints: their config.json, and the names of their weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from timeviper_fast.checkpoint.encoder import encoder_names
from timeviper_fast.checkpoint.mapping import NameMap, Piece, under
from timeviper_fast.checkpoint.qwen2 import qwen2_config_from_hf, qwen2_names, token_ids
from timeviper_fast.config import CompressionStage, TimeViperConfig, VisionConfig
from timeviper_fast.errors import fail, not_built
from timeviper_fast.presets import FLASH, VISION_PRESETS

__all__ = ["ARCHITECTURE", "flash_config", "flash_names", "flash_vision_names"]

ARCHITECTURE = "VideoChatFlashQwenForCausalLM"
_FILE = "config.json"
# part of mm_vision_tower -> our preset; the first that is found holds
_TOWERS = {"internvideo2": "internvideo2", "umt-hd": "umt-hd-large", "umt": "umt-large"}
# what the released models are; nothing else is built
_SERVED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("tome16_mlp_hd64",),
    "vision_encode_type": ("video_image",),
    "mm_patch_merge_type": ("spatial_nopad", "flat"),
    "mm_newline_position": ("nothing",),
    "mm_local_num_frames": (4,),
    "frame_aspect_ratio": ("square",),
}
# stages in front that keep tokens by distance
_UNIFORM = {"uniform": None, "attention": 0, "uniform0_attention": 1, "uniform1_attention": 2}


def flash_config(
    values: Mapping[str, Any], generation: Mapping[str, Any], has_head: bool = True
) -> TimeViperConfig:
    """The whole model's shape and its defaults of asking.

    Args:
        values: contents of config.json.
        generation: contents of generation_config.json; empty if there is none. Its repetition
            penalty and its ids that end an answer are read: upstream draws greedily with both.
        has_head: whether the files hold an `lm_head`; without one the embedding serves.

    Raises:
        ValueError: a value breaks a rule.
        NotImplementedError: a legal value that nothing serves.
    """
    for name, served in _SERVED.items():
        if values.get(name, served[0]) not in served:
            not_built(_FILE, name, f"be {served[0]!r} (nothing else is built)", values[name])
    penalty = generation.get("repetition_penalty")
    llm, tower = qwen2_config_from_hf(values), _tower(values)
    ends = (*llm.eos_token_ids, *token_ids("eos_token_id", generation.get("eos_token_id")))
    longest = values.get("tokenizer_model_max_length") or llm.max_position_embeddings
    if type(longest) is not int or longest < 1:
        fail(_FILE, "tokenizer_model_max_length", "be a positive integer", longest)
    backbone = replace(
        llm,
        tie_word_embeddings=not has_head,
        max_position_embeddings=min(longest, llm.max_position_embeddings),
        eos_token_ids=tuple(dict.fromkeys(ends)),
    )
    return replace(
        FLASH,
        backbone=backbone,
        vision=tower,
        projector=replace(FLASH.projector, merge_heads=tower.num_attention_heads),
        stages=_stages(values),
        repetition_penalty=1.0 if penalty is None else penalty,
    )


def _tower(values: Mapping[str, Any]) -> VisionConfig:
    name = values.get("mm_vision_tower")
    found = next((own for part, own in _TOWERS.items() if part in str(name)), None)
    if found is None:
        fail(_FILE, "mm_vision_tower", f"contain one of {', '.join(_TOWERS)}", name)
    tower = VISION_PRESETS[found]
    tower = replace(tower, feature_layer=values.get("mm_vision_select_layer", -2))
    width = values.get("mm_hidden_size", tower.hidden_size)
    if width != tower.hidden_size:
        fail(_FILE, "mm_hidden_size", f"be {tower.hidden_size}, the width of {name}", width)
    return tower


def _stages(values: Mapping[str, Any]) -> tuple[CompressionStage, ...]:
    """The stages that a config switches on; the released ones do not."""
    if not values.get("mm_llm_compress"):
        return ()
    kind = values.get("llm_compress_type", "attention")
    blocks = values.get("llm_compress_layer_list", [8, 16, 24])
    ratios = values.get("llm_image_token_ratio_list", [1.0, 0.5, 0.25, 0.125])
    if kind not in _UNIFORM:
        fail(_FILE, "llm_compress_type", f"be one of {', '.join(_UNIFORM)}", kind)
    if not (isinstance(blocks, list) and all(type(b) is int and b > 0 for b in blocks)):
        fail(_FILE, "llm_compress_layer_list", "be a list of blocks", blocks)
    numbers = isinstance(ratios, list) and all(type(ratio) in (int, float) for ratio in ratios)
    if not numbers or len(ratios) != len(blocks) + 1 or ratios[0] != 1:
        rule = f"be a list of {len(blocks) + 1} ratios, the first of them 1"
        fail(_FILE, "llm_image_token_ratio_list", rule, ratios)
    first = _UNIFORM[kind]
    uniform = len(blocks) if first is None else first
    return tuple(
        CompressionStage(
            2 * block,
            "uniform" if i < uniform else "attention",
            float(keep),
            transfer=False,
            score="normed",
            spacing="linspace",
        )
        for i, (block, keep) in enumerate(zip(blocks, ratios[1:]))
    )


def flash_names(config: TimeViperConfig) -> NameMap:
    """Names of all weights: of the encoder, the projector and the language model."""
    vision = flash_vision_names(config.vision)
    llm = under("backbone.", qwen2_names())

    def translate(key: str) -> Sequence[Piece] | None:
        pieces = vision(key)
        return llm(key) if pieces is None else pieces

    return translate


def flash_vision_names(config: VisionConfig) -> NameMap:
    """Names of encoder and projector in a checkpoint of the whole model; None for other names."""
    parts = {
        "model.vision_tower.vision_tower.": under("vision.", encoder_names(config)),
        "model.mm_projector.": under("projector.", _projector_names),
    }

    def translate(key: str) -> Sequence[Piece] | None:
        for prefix, names in parts.items():
            if key.startswith(prefix):
                return names(key.removeprefix(prefix))
        return None

    return translate


def _projector_names(key: str) -> Sequence[Piece] | None:
    match = re.fullmatch(r"mlp\.(\d+\.(?:weight|bias))", key)
    return (Piece(f"layers.{match[1]}"),) if match else None
