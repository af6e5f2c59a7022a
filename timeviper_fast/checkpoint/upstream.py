"""Upstream TimeViper's checkpoints: its specifiers to our config, its weights into our model.

Other projects' names appear in this folder only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from timeviper_fast.checkpoint.config_file import FORMAT
from timeviper_fast.checkpoint.encoder import encoder_names
from timeviper_fast.checkpoint.files import (
    PathLike,
    has_weights,
    local_directory,
    model_json,
    read_json,
)
from timeviper_fast.checkpoint.llm import llm_config_from_hf, llm_names
from timeviper_fast.checkpoint.mapping import NameMap, Piece, under
from timeviper_fast.checkpoint.nemotron_vl import ARCHITECTURES as VL
from timeviper_fast.checkpoint.siglip import vision_config_from_hf
from timeviper_fast.checkpoint.videochat_flash import ARCHITECTURE as FLASH
from timeviper_fast.checkpoint.weights import Progress, Source, load_weights
from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.errors import ArgumentError, CheckpointError, fail, not_built
from timeviper_fast.presets import VISION_PRESETS

__all__ = [
    "load_backbone",
    "load_upstream",
    "projector_from_upstream",
    "projector_names",
    "stages_from_hf",
    "stages_from_upstream",
    "upstream_config",
    "vision_from_upstream",
    "vlm_names",
]

M = TypeVar("M", bound=nn.Module)


def stages_from_upstream(
    pdrop_type: str, merge_module: str, layers_per_block: int = 1
) -> tuple[CompressionStage, ...]:
    """Upstream's stage grammar: TYPE_LAYER_RATIO joined by "-", as "uni_7_0.5-attn_39_0.1".

    RATIO is the fraction of the original vision tokens that STAYS (the paper writes what is
    dropped). TYPE is matched by substring: `attn` selects by attention, otherwise `uni` uniformly;
    `drop` never transfers. `merge_module` is "CrossAttention" (transfer) or "no_merge". LAYER
    counts the LLM's own blocks, each of `layers_per_block` layers of ours.

    Raises:
        ValueError: naming the stage, the rule and the value.
    """
    if merge_module not in ("CrossAttention", "no_merge"):
        fail("upstream", "merge_module", "be 'CrossAttention' or 'no_merge'", merge_module)
    transfers = merge_module == "CrossAttention"
    return tuple(_stage(text, transfers, layers_per_block) for text in pdrop_type.split("-"))


def _stage(text: str, transfers: bool, layers_per_block: int) -> CompressionStage:
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
            layer * layers_per_block,
            "attention" if "attn" in kind else "uniform",
            keep,
            transfer=transfers and "drop" not in kind,
        )
    except ArgumentError as error:
        part = f" stage {text!r}: {error.owner}: {error.argument}"
        raise ArgumentError("upstream", "pdrop_type", error.rule, error.value, part=part) from None


def stages_from_hf(config: Mapping[str, Any]) -> tuple[CompressionStage, ...]:
    """The stages that upstream stored beside the language model in config.json; () if none."""
    if config.get("use_pdrop") not in (True, False, None):
        fail("config.json", "use_pdrop", "be true or false", config["use_pdrop"])
    if not config.get("use_pdrop"):
        return ()
    return stages_from_upstream(
        str(config.get("pdrop_type")),
        str(config.get("merge_module", "no_merge")),
        2 if config.get("model_type") == "qwen2" else 1,
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
    """Upstream's vision backbone ids (SigLIP and DINOv2 with timm's weights: exact GELU).

    Raises:
        NotImplementedError: a pair of encoders, for which upstream lacks the module, too.
        ValueError: no such id.
    """
    owner, name, rule = "upstream", "vision_backbone_id", f"be one of {', '.join(VISION_PRESETS)}"
    if vision_backbone_id in VISION_PRESETS:
        return VISION_PRESETS[vision_backbone_id]
    if vision_backbone_id.startswith("dinosiglip") or "+" in vision_backbone_id:
        not_built(owner, name, f"{rule} (two encoders at once are not built)", vision_backbone_id)
    fail(owner, name, rule, vision_backbone_id)


def projector_names(key: str) -> Sequence[Piece] | None:
    """Upstream's projector: `projector.{0,2,4}.{weight,bias}`."""
    match = re.fullmatch(r"projector\.(\d+\.(?:weight|bias))", key)
    return (Piece(f"layers.{match[1]}"),) if match else None


def vlm_names(config: TimeViperConfig) -> NameMap:
    """Upstream's flat state dict of the whole model, with or without `module.` in front."""
    parts = {
        "vision_backbone.featurizer.": under("vision.", encoder_names(config.vision)),
        "projector.": under("projector.", projector_names),
        "llm_backbone.llm.": under("backbone.", llm_names(config.backbone, config.stages)),
    }

    def translate(key: str) -> Sequence[Piece] | None:
        key = key.removeprefix("module.")
        for prefix, names in parts.items():
            if key.startswith(prefix):
                return names(key.removeprefix(prefix))
        return None

    return translate


def _llm_json(llm_dir: PathLike) -> dict[str, Any]:
    """The config.json of a language model in Hugging Face's format."""
    values = model_json(local_directory(llm_dir, ["*.json"]))
    if values.get("format") == FORMAT:
        rule = "be the language model's Hugging Face directory"
        raise CheckpointError(
            "checkpoint", "llm", rule, f"{llm_dir}, a timeviper_fast checkpoint already"
        )
    kinds = values.get("architectures")
    if isinstance(kinds, list) and any(kind in (FLASH, *VL) for kind in kinds):
        rule = "be the language model's Hugging Face directory"
        raise CheckpointError(
            "checkpoint", "llm", rule, f"{llm_dir}, a whole model (convert --model takes it)"
        )
    return values


def upstream_config(
    llm_dir: PathLike,
    *,
    vision: PathLike = "siglip-vit-so400m-384px",
    arch: str = "tome_mlp-16",
    pdrop: str | None = None,
    merge: str | None = None,
    template: str | None = None,
) -> TimeViperConfig:
    """The model's shape from upstream's parts.

    Args:
        llm_dir: directory (or hub id) with the language model's config.json.
        vision: upstream's vision backbone id, or a directory with a SigLIP config.json.
        arch: projector specifier, as "tome_mlp-16".
        pdrop: TransV's stages, as "uni_7_0.5-attn_39_0.1" (ratios stay); None takes those that
            config.json holds, if any.
        merge: how stages of `pdrop` treat dropped tokens: "CrossAttention" (also when
            None) or "no_merge".
        template: the chat template; None takes that of the language model.

    Raises:
        ValueError, NotImplementedError: naming the field, the rule and the value.
    """
    llm = _llm_json(llm_dir)
    if merge is not None and pdrop is None:
        raise CheckpointError(
            "checkpoint", "merge", "be left out without pdrop (config.json has its own)", merge
        )
    backbone = llm_config_from_hf(llm)
    tower = Path(vision) / "config.json"
    encoder = (
        vision_config_from_hf(read_json(tower))
        if tower.is_file()
        else vision_from_upstream(str(vision))
    )
    return TimeViperConfig(
        backbone=backbone,
        vision=encoder,
        # the frames that are encoded together are merged together
        projector=replace(projector_from_upstream(arch), clip_frames=encoder.clip_frames),
        stages=(
            stages_from_hf(llm)
            if pdrop is None
            else stages_from_upstream(pdrop, merge or "CrossAttention", backbone.layers_per_block)
        ),
        template=template or ("qwen2" if backbone.family == "qwen2" else "nano_base"),
    )


def load_upstream(
    build: Callable[[TimeViperConfig], M],
    config: TimeViperConfig,
    *,
    llm_dir: PathLike | None = None,
    vision_file: PathLike | None = None,
    vlm_file: PathLike | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
) -> M:
    """A whole model from upstream's parts. If several hold a weight, the last argument wins.

    Args:
        build: makes the module from `config`; it is called on the meta device.
        llm_dir: language model in Hugging Face's format; may hold no weights if `vlm_file` does.
        vision_file: SigLIP weights under timm's or Hugging Face's names (file or directory).
        vlm_file: upstream's flat state dict, of the whole model or a part (file or directory).
        device, dtype, progress: see `load_weights`.

    Raises:
        CheckpointError: the parts together do not hold exactly the model's weights.
    """
    sources = []
    if llm_dir is not None:
        directory = local_directory(llm_dir)
        if vlm_file is None or has_weights(directory):
            names = llm_names(config.backbone, config.stages)
            sources.append(Source(directory, under("backbone.", names)))
    if vision_file is not None:
        sources.append(Source(vision_file, under("vision.", encoder_names(config.vision))))
    if vlm_file is not None:
        sources.append(Source(vlm_file, vlm_names(config)))
    if not sources:
        raise CheckpointError(
            "load_upstream", "llm_dir, vision_file, vlm_file", "name at least one", "none"
        )
    with torch.device("meta"):
        module = build(config)
    return load_weights(module, *sources, device=device, dtype=dtype, progress=progress)


def load_backbone(
    build: Callable[[BackboneConfig, tuple[CompressionStage, ...]], M],
    llm_dir: PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
) -> M:
    """The language model alone, from a Hugging Face directory or hub id, with the stages that its
    config.json holds (upstream's does; none otherwise).

    Raises:
        CheckpointError: no such checkpoint, or weights that do not fit.
    """
    directory = local_directory(llm_dir)
    hf = _llm_json(directory)
    stages = stages_from_hf(hf)
    with torch.device("meta"):
        backbone = llm_config_from_hf(hf)
        module = build(backbone, stages)
    source = Source(directory, llm_names(backbone, stages))
    return load_weights(module, source, device=device, dtype=dtype, progress=progress)
