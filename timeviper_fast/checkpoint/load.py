"""Models from a directory or a Hugging Face hub id: in our own format (written by `save.py`), or
as VideoChat-Flash and NVIDIA's hybrid video models are released."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import nn

from timeviper_fast.checkpoint.config_file import FORMAT, FORMAT_VERSION, config_from_dict
from timeviper_fast.checkpoint.files import (
    TOKENIZER_FILES,
    PathLike,
    local_directory,
    model_json,
    read_json,
    reason,
    refuse_pickles,
    stored_names,
    stored_shapes,
)
from timeviper_fast.checkpoint.mapping import NameMap, own_names
from timeviper_fast.checkpoint.nemotron_vl import ARCHITECTURES as VL
from timeviper_fast.checkpoint.nemotron_vl import check_vl, vl_config, vl_names
from timeviper_fast.checkpoint.videochat_flash import ARCHITECTURE as FLASH
from timeviper_fast.checkpoint.videochat_flash import flash_config, flash_names
from timeviper_fast.checkpoint.weights import Progress, Source, load_weights
from timeviper_fast.config import TimeViperConfig
from timeviper_fast.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_pretrained", "load_tokenizer", "read_config"]

M = TypeVar("M", bound=nn.Module)


class _Stored(NamedTuple):
    """What a directory says of its model.

    Attributes:
        config: the model's shape.
        names: where its stored tensors go.
        check: what is checked before its weights are read.
    """

    config: TimeViperConfig
    names: NameMap
    check: Callable[[Path], None]


def read_config(path_or_hub_id: PathLike) -> TimeViperConfig:
    """The config of a model as `load_pretrained` reads it; no weights are read or downloaded.

    Raises:
        CheckpointError: no such checkpoint, or another format.
    """
    return _read(local_directory(path_or_hub_id, ["*.json"])).config


def _read(directory: Path) -> _Stored:
    values = model_json(directory)
    kinds = values.get("architectures")
    if values.pop("format", None) != FORMAT:
        for kind in kinds if isinstance(kinds, list) else []:
            if kind in _RELEASED:
                return _read_released(directory, values, _RELEASED[kind])
        rule = f"be a timeviper_fast checkpoint, or of the architecture {', '.join(_RELEASED)}"
        what = f"{directory} of another format" + (f" (architectures {kinds})" if kinds else "")
        raise CheckpointError("from_pretrained", "path", rule, what, "others are converted first")
    version = values.pop("format_version", None)
    if version not in range(1, FORMAT_VERSION + 1):
        rule = f"be 1 to {FORMAT_VERSION}"
        raise CheckpointError("config.json", "format_version", rule, version)
    return _Stored(config_from_dict(values, version), own_names, lambda directory: None)


_Reader = Callable[[Path, dict[str, Any], dict[str, Any]], _Stored]


def _read_released(directory: Path, values: dict[str, Any], reader: _Reader) -> _Stored:
    """Released files of another project, whatever model_type they name."""
    generation = directory / "generation_config.json"
    defaults = read_json(generation) if generation.is_file() else {}
    try:
        return reader(directory, values, defaults)
    except ArgumentError as error:
        owner = error.owner if error.owner_is_file else f"config.json: {error.owner}"
        raise CheckpointError(
            owner, error.argument, error.rule, error.value, error.remedy
        ) from None


def _read_flash(directory: Path, values: dict[str, Any], defaults: dict[str, Any]) -> _Stored:
    names = stored_names(directory)
    config = flash_config(values, defaults, not names or "lm_head.weight" in names)
    return _Stored(config, flash_names(config), refuse_pickles)


def _read_vl(directory: Path, values: dict[str, Any], defaults: dict[str, Any]) -> _Stored:
    config = vl_config(values, defaults, stored_shapes(directory))
    return _Stored(config, vl_names(config), check_vl)


_RELEASED: dict[str, _Reader] = {**dict.fromkeys(VL, _read_vl), FLASH: _read_flash}


def load_tokenizer(directory: PathLike) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the weights; None if there are no tokenizer files.

    Raises:
        CheckpointError: the files are there and no tokenizer can be made of them.
    """
    if not any((Path(directory) / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer, PreTrainedConfig

    try:
        return AutoTokenizer.from_pretrained(
            str(directory),
            # Use the tokenizer's files alone. Transformers would warn about a config.json whose
            # model type it does not know.
            config=PreTrainedConfig(),
            local_files_only=True,
            # Left out, transformers asks on the terminal whether to run code that the files name.
            trust_remote_code=False,
        )
    # damaged files can make transformers raise anything; each means there is no tokenizer
    except Exception as error:
        raise CheckpointError(
            "load_tokenizer",
            "directory",
            "hold a Hugging Face tokenizer",
            f"{directory} ({reason(error)})",
        ) from None


def _built(build: Callable[[TimeViperConfig], M], stored: _Stored) -> M:
    """The module without weights."""
    with torch.device("meta"):
        return build(stored.config)


def load_pretrained(
    build: Callable[[TimeViperConfig], M],
    path_or_hub_id: PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
) -> tuple[M, TimeViperConfig, Path]:
    """A model as it is stored: (module, config, directory with the tokenizer files).

    Args:
        build: makes the module from its config; it is called on the meta device.
        path_or_hub_id: local directories come first.
        device, dtype, progress: see `load_weights`.

    Raises:
        CheckpointError: no such checkpoint, another format, or weights that do not fit.
    """
    # a mistake in the config, or of `build`, is found before weights are downloaded
    before = _read(local_directory(path_or_hub_id, ["*.json"]))
    module = _built(build, before)
    directory = local_directory(path_or_hub_id)
    # some sizes are read off the weights, and whether there is an lm_head
    stored = _read(directory)
    if stored.config != before.config:
        module = _built(build, stored)
    stored.check(directory)
    source = Source(directory, stored.names)
    load_weights(module, source, device=device, dtype=dtype, progress=progress)
    return module, stored.config, directory
