"""The model that a phase begins with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from timeviper_fast.checkpoint.load import load_tokenizer, read_config
from timeviper_fast.config import CompressionStage, TimeViperConfig
from timeviper_fast.errors import ArgumentError
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.transv import TransV
from timeviper_fast.presets import preset
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.timeviper import TimeViper

__all__ = ["first_config", "initial_model", "with_stages"]

_PRESET = "preset:"


def first_config(name: str | Path) -> TimeViperConfig:
    """The configuration of the model that `initial_model` returns; no weights are read."""
    if str(name).startswith(_PRESET):
        return preset(str(name).removeprefix(_PRESET))
    return read_config(name)


def initial_model(
    name: str | Path,
    *,
    tokenizer: str | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> TimeViper:
    """A model on the CPU to train: loaded, or with seeded random weights.

    Args:
        name: a directory, a hub id, or "preset:NAME" for random weights that are fit for training.
        tokenizer: a directory with tokenizer files for a preset; None takes the byte tokenizer.
        seed: seed of random weights.
        dtype: dtype of the weights.

    Raises:
        ValueError: the model, preset or tokenizer does not exist.
    """
    if not str(name).startswith(_PRESET):
        return TimeViper.from_pretrained(name, device="cpu", dtype=dtype)
    words = byte_tokenizer() if tokenizer is None else load_tokenizer(tokenizer)
    if words is None:
        rule = "be a directory with tokenizer files"
        raise ArgumentError("training", "tokenizer", rule, tokenizer)
    model = TimeViper(preset(str(name).removeprefix(_PRESET)), words)
    if len(words) > model.config.backbone.vocab_size:
        rule = f"have at most the model's {model.config.backbone.vocab_size} tokens"
        raise ArgumentError("training", "tokenizer", rule, len(words))
    init_weights(model, seed=seed, for_training=True)
    return model.to(dtype)


def with_stages(model: TimeViper, stages: tuple[CompressionStage, ...], *, seed: int) -> None:
    """Give a model other compression stages, in place.

    A transfer before a layer that had one keeps its weights. A new transfer gets seeded random
    weights and a closed gate.

    Raises:
        ValueError: the stages do not fit the model or each other.
    """
    config = replace(model.config, stages=stages)
    own = cast(Iterable[TransV], model.backbone.transv)
    held = {module.stage.layer: module for module in own}
    modules = torch.nn.ModuleList()
    for number, stage in enumerate(stages):
        module = held.get(stage.layer)
        if module is None or (stage.transfer and not module.stage.transfer):
            module = TransV(stage, config.backbone)
            init_weights(module, seed=seed + number)
            module.to(model.device, model.dtype)
        modules.append(module)
    model.backbone.transv = modules
    model.set_stages(stages)
