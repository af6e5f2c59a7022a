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
from timeviper_fast.errors import ArgumentError, CheckpointError

__all__ = ["FORMAT", "FORMAT_VERSION", "config_from_dict", "config_to_dict"]

FORMAT, FORMAT_VERSION = "timeviper_fast", 4
# {part: {field: (the version that added it, the value that older versions meant)}}
_ADDED: dict[str, dict[str, tuple[int, Any]]] = {
    "backbone": {
        "family": (3, "nemotron_h"),
        "rope_theta": (3, 0.0),
        "num_experts": (4, 0),
        "experts_per_token": (4, 0),
        "expert_size": (4, 0),
        "shared_expert_size": (4, 0),
        "expert_latent_size": (4, 0),
        "expert_groups": (4, 1),
        "best_expert_groups": (4, 1),
        "normalize_expert_weights": (4, True),
        "expert_scale": (4, 1.0),
    },
    "vision": {
        "kind": (3, "siglip"),
        "clip_frames": (3, 1),
        "register_tokens": (3, 0),
        "position_side": (4, 0),
        "frame_grid": (4, None),
    },
    "projector": {"image_tokens": (3, None), "inner_size": (4, 0)},
    "config": {
        "policy": (3, "fps:1"),
        "mention_duration": (3, False),
        "repetition_penalty": (3, 1.0),
    },
    "stages": {
        "score": (2, "raw"),
        "spacing": (3, "exact"),
        "prune": (4, 0.0),
        "match": (4, "place"),
    },
}
_FILE = "config.json"

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


def config_from_dict(values: Mapping[str, Any], version: int = FORMAT_VERSION) -> TimeViperConfig:
    """The inverse of `config_to_dict`. Every field of that version of the format must be given.

    Raises:
        CheckpointError: a field that does not exist or is missing, or a value that breaks a rule.
    """
    parts = {"backbone": BackboneConfig, "vision": VisionConfig, "projector": ProjectorConfig}
    given = dict(values)
    for name, kind in parts.items():
        if name in given:
            given[name] = _build(kind, _completed(given[name], name, version), name)
    if "stages" in given:
        stages = given["stages"]
        if not isinstance(stages, list):
            raise CheckpointError(_FILE, "stages", "be a list of objects", repr(stages))
        given["stages"] = tuple(
            _build(CompressionStage, _completed(s, "stages", version), f"stages[{i}]")
            for i, s in enumerate(stages)
        )
    return _build(TimeViperConfig, _completed(given, "config", version), "config")


def _completed(values: Any, part: str, version: int) -> Any:
    """`values` with the fields that this version of the format did not have yet."""
    older = {name: old for name, (first, old) in _ADDED.get(part, {}).items() if version < first}
    return {**older, **values} if isinstance(values, Mapping) else values


def _build(kind: type[C], values: Any, part: str) -> C:
    """The `part` of the file that is a `kind`."""
    if not isinstance(values, Mapping):
        raise CheckpointError(_FILE, part, "be an object with fields", repr(values))
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown, missing = sorted(values.keys() - known), sorted(known - values.keys())
    if unknown:
        raise CheckpointError(_FILE, part, "have only known fields", some(unknown))
    if missing:
        raise CheckpointError(_FILE, part, "have all of its fields", f"no {some(missing)}")
    try:
        return kind(**{name: _revive(value) for name, value in values.items()})
    except ArgumentError as error:
        # name the part as the file does, by its field and not by our class
        inner = part if error.owner == kind.__name__ else error.owner
        owner = f"{_FILE}: {inner}" if inner else _FILE
        raise CheckpointError(
            owner, error.argument, error.rule, error.value, error.remedy
        ) from None


def _revive(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_revive(item) for item in value)
    return math.inf if value == "inf" else value
