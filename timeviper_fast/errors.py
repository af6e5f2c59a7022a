"""Errors that users see, in one wording, and the checks that config and layout share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

__all__ = [
    "COUNT",
    "INTEGER",
    "CheckpointError",
    "Kind",
    "VideoError",
    "expect",
    "expect_function",
    "fail",
    "instance_of",
    "is_integer",
    "is_number",
    "not_built",
]


class VideoError(ValueError):
    """A video that cannot be read, or not whole; one line that names it and says why."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, does not fit the model, or cannot be written."""


def fail(owner: str, name: str, rule: str, value: Any) -> NoReturn:
    """Raise the ValueError `<owner>: <name> must <rule>, got <value>`."""
    raise ValueError(f"{owner}: {name} must {rule}, got {value!r}")


def not_built(owner: str, name: str, rule: str, value: Any) -> NoReturn:
    """Raise the NotImplementedError `<owner>: <name> must <rule>, got <value>`."""
    raise NotImplementedError(f"{owner}: {name} must {rule}, got {value!r}")


def expect_function(owner: str, **given: Any) -> None:
    """Raise a ValueError for what cannot be called; None is no function and may be left out."""
    for name, value in given.items():
        if value is not None and not callable(value):
            fail(owner, name, "be a function or None", value)


class Kind(NamedTuple):
    """What every field of one kind must be, in words and as a test."""

    rule: str
    holds: Callable[[Any], bool]


def is_integer(value: Any) -> bool:
    """In Python a bool is an int, here it is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """An integer or a finite float."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def instance_of(kind: type) -> Kind:
    return Kind(f"be a {kind.__name__}", lambda v: isinstance(v, kind))


INTEGER = Kind("be an integer", is_integer)
COUNT = Kind("be an integer of 0 or more", lambda v: is_integer(v) and v >= 0)


def expect(owner: str, config: Any, kind: Kind, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not kind.holds(value):
            fail(owner, name, kind.rule, value)
