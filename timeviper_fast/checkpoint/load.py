"""Models in our own format (written by `save.py`) from a directory or a Hugging Face hub id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from timeviper_fast.checkpoint.config_file import FORMAT, FORMAT_VERSION, config_from_dict
from timeviper_fast.checkpoint.files import (
    TOKENIZER_FILES,
    PathLike,
    local_directory,
    model_json,
    reason,
)
from timeviper_fast.checkpoint.weights import Progress, Source, load_weights
from timeviper_fast.config import TimeViperConfig
from timeviper_fast.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_pretrained", "load_tokenizer", "read_config"]

M = TypeVar("M", bound=nn.Module)


def read_config(path_or_hub_id: PathLike) -> TimeViperConfig:
    """The config of a checkpoint in our own format; no weights are read or downloaded.

    Raises:
        CheckpointError: no such checkpoint, or another format.
    """
    directory = local_directory(path_or_hub_id, ["*.json"])
    values = model_json(directory)
    if values.pop("format", None) != FORMAT:
        rule = "be a timeviper_fast checkpoint (other formats are converted first)"
        raise CheckpointError("from_pretrained", "path", rule, f"{directory} of another format")
    version = values.pop("format_version", None)
    if version not in range(1, FORMAT_VERSION + 1):
        rule = f"be 1 to {FORMAT_VERSION}"
        raise CheckpointError("config.json", "format_version", rule, version)
    return config_from_dict(values, version)


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
        )
    # damaged files can make transformers raise anything; each means there is no tokenizer
    except Exception as error:
        raise CheckpointError(
            "load_tokenizer",
            "directory",
            "hold a Hugging Face tokenizer",
            f"{directory} ({reason(error)})",
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
