"""Checkpoints: models in our own format (written by `saving.py`) or of other projects' parts.

Together with `names.py` the only room that knows other projects' formats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.errors import CheckpointError
from timeviper_fast.names import (
    backbone_config_from_hf,
    llm_names,
    projector_from_upstream,
    stages_from_hf,
    stages_from_upstream,
    under,
    vision_config_from_hf,
    vision_from_upstream,
    vision_names,
    vlm_names,
)
from timeviper_fast.saving import FORMAT, FORMAT_VERSION, TOKENIZER_FILES
from timeviper_fast.weights import (
    PathLike,
    Progress,
    Source,
    as_path,
    fail,
    has_weights,
    load_weights,
    read_json,
    some,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Source",
    "backbone_config_from_hf",
    "config_from_dict",
    "load_backbone",
    "load_pretrained",
    "load_tokenizer",
    "load_upstream",
    "load_weights",
    "local_directory",
    "read_config",
    "upstream_config",
]

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")

_DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer*")


def local_directory(path_or_hub_id: PathLike, patterns: Sequence[str] = _DOWNLOADED) -> Path:
    """A local directory as it is, or what a Hugging Face hub id holds under these file patterns.

    Raises:
        CheckpointError: neither a directory nor a repository that can be reached.
    """
    path = as_path("checkpoint", "path", path_or_hub_id)
    if path.is_dir() and str(path_or_hub_id):
        return path
    name, rule = str(path_or_hub_id), "be a directory or a Hugging Face hub id (owner/name)"
    if path.exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        fail("checkpoint", "path", rule, repr(name))
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    # whatever the network makes the hub's client raise means the same: it is not there
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"checkpoint: path must {rule}, got {name!r}: no such directory, and the hub was not "
            f"reached or does not have it ({reason})"
        ) from None


def config_from_dict(values: Mapping[str, Any]) -> TimeViperConfig:
    """The inverse of `saving.config_to_dict`; what a file does not say is not guessed.

    Raises:
        CheckpointError: a field that does not exist or is missing, or a value that breaks a rule.
    """
    parts = {"backbone": BackboneConfig, "vision": VisionConfig, "projector": ProjectorConfig}
    try:
        given = dict(values)
        for name, kind in parts.items():
            if name in given:
                given[name] = _build(kind, given[name], name)
        if "stages" in given:
            stages = given["stages"]
            if not isinstance(stages, list):
                raise ValueError(f"stages must be a list of objects, got {stages!r}")
            given["stages"] = tuple(
                _build(CompressionStage, s, f"stages[{i}]") for i, s in enumerate(stages)
            )
        return _build(TimeViperConfig, given, "config")
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from None


def _build(kind: type[C], values: Any, owner: str) -> C:
    if not isinstance(values, Mapping):
        raise ValueError(f"{owner} must be an object with fields, got {values!r}")
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    strangers, lacks = sorted(values.keys() - known), sorted(known - values.keys())
    if strangers:
        raise ValueError(f"{owner} must have only known fields, got {some(strangers)}")
    if lacks:
        raise ValueError(f"{owner} must have all of its fields, got no {some(lacks)}")
    try:
        return kind(**{name: _revive(value) for name, value in values.items()})
    except ValueError as error:
        # in a file the part has the name of its field, not that of our class
        raise ValueError(str(error).replace(kind.__name__, owner, 1)) from None


def _revive(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_revive(item) for item in value)
    return math.inf if value == "inf" else value


def read_config(path_or_hub_id: PathLike) -> TimeViperConfig:
    """The config of a checkpoint in our own format; no weights are read or downloaded.

    Raises:
        CheckpointError: no such checkpoint, or another format.
    """
    directory = local_directory(path_or_hub_id, ["*.json"])
    values = _model_json(directory)
    if values.pop("format", None) != FORMAT:
        rule = "be a timeviper_fast checkpoint (other formats are converted first)"
        fail("from_pretrained", "path", rule, f"{directory} of another format")
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        fail("config.json", "format_version", f"be {FORMAT_VERSION}", version)
    return config_from_dict(values)


def _model_json(directory: Path) -> dict[str, Any]:
    if not (directory / "config.json").is_file():
        fail("checkpoint", "path", "be a model's directory (with a config.json)", directory)
    return read_json(directory / "config.json")


def _llm_json(llm_dir: PathLike) -> dict[str, Any]:
    """The config.json of a language model in Hugging Face's format."""
    values = _model_json(local_directory(llm_dir, ["*.json"]))
    if values.get("format") == FORMAT:
        rule = "be the language model's Hugging Face directory"
        fail("checkpoint", "llm", rule, f"{llm_dir}, a timeviper_fast checkpoint already")
    return values


def load_tokenizer(directory: PathLike) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside the weights; None if no tokenizer files do.

    Raises:
        CheckpointError: the files are there and no tokenizer can be made of them.
    """
    if not any((Path(directory) / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer, PreTrainedConfig

    try:
        return AutoTokenizer.from_pretrained(
            str(directory),
            # the tokenizer's files alone decide: config.json may be of a model that transformers
            # does not know, of which it would warn
            config=PreTrainedConfig(),
            local_files_only=True,
        )
    # whatever foreign files make transformers raise means the same
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"load_tokenizer: directory must hold a Hugging Face tokenizer, "
            f"got {directory} ({reason})"
        ) from None


def load_pretrained(
    build: Callable[[TimeViperConfig], M],
    path_or_hub_id: PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
) -> tuple[M, TimeViperConfig, Path]:
    """A model in our own format: (module, config, directory with the tokenizer files).

    Args:
        build: makes the module from its config; it is called on the meta device.
        path_or_hub_id: local directories come first.
        device, dtype, progress: see `load_weights`.

    Raises:
        CheckpointError: no such checkpoint, another format, or weights that do not fit.
    """
    directory = local_directory(path_or_hub_id)
    config = read_config(directory)
    with torch.device("meta"):
        module = build(config)
    load_weights(module, Source(directory), device=device, dtype=dtype, progress=progress)
    return module, config, directory


def upstream_config(
    llm_dir: PathLike,
    *,
    vision: PathLike = "siglip-vit-so400m-384px",
    arch: str = "tome_mlp-16",
    pdrop: str | None = None,
    merge: str | None = None,
    template: str = "nano_base",
) -> TimeViperConfig:
    """The model's shape from upstream's parts.

    Args:
        llm_dir: directory (or hub id) with the language model's config.json.
        vision: upstream's vision backbone id, or a directory with a SigLIP config.json.
        arch: projector specifier, as "tome_mlp-16".
        pdrop: TransV's stages, as "uni_7_0.5-attn_39_0.1" (ratios stay); None takes those that
            config.json holds, if any.
        merge: what stages of `pdrop` do with the tokens they drop: "CrossAttention" (also when
            None) or "no_merge".

    Raises:
        ValueError, NotImplementedError: naming the field, the rule and the value.
    """
    llm = _llm_json(llm_dir)
    if merge is not None and pdrop is None:
        fail("checkpoint", "merge", "be left out without pdrop (config.json has its own)", merge)
    tower = Path(vision) / "config.json"
    return TimeViperConfig(
        backbone=backbone_config_from_hf(llm),
        vision=(
            vision_config_from_hf(read_json(tower))
            if tower.is_file()
            else vision_from_upstream(str(vision))
        ),
        projector=projector_from_upstream(arch),
        stages=(
            stages_from_hf(llm)
            if pdrop is None
            else stages_from_upstream(pdrop, merge or "CrossAttention")
        ),
        template=template,
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
    """A whole model from upstream's parts; what several hold is taken from the later argument.

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
            sources.append(Source(directory, under("backbone.", llm_names(config.stages))))
    if vision_file is not None:
        sources.append(Source(vision_file, under("vision.", vision_names(config.vision))))
    if vlm_file is not None:
        sources.append(Source(vlm_file, vlm_names(config)))
    if not sources:
        fail("load_upstream", "llm_dir, vision_file, vlm_file", "name at least one", "none")
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
        module = build(backbone_config_from_hf(hf), stages)
    source = Source(directory, llm_names(stages))
    return load_weights(module, source, device=device, dtype=dtype, progress=progress)
