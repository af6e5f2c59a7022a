"""The model's shape as `config.json` of our own format, written and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from timeviper_fast.checkpoint.files import some
from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.errors import CheckpointError

__all__ = ["FORMAT", "FORMAT_VERSION", "config_from_dict", "config_to_dict"]

FORMAT, FORMAT_VERSION = "timeviper_fast", 1

C = TypeVar("C")


def config_to_dict(config: TimeViperConfig) -> dict[str, Any]:
    """Plain JSON values; an infinite bound is spelled "inf"."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return "inf" if value == math.inf else value

    return plain(asdict(config))


def config_from_dict(values: Mapping[str, Any]) -> TimeViperConfig:
    """The inverse of `config_to_dict`; what a file does not say is not guessed.

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
