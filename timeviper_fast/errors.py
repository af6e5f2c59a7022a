"""The errors that users see, and the checks that config and layout share."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

__all__ = [
    "ABOVE_0",
    "BOOL",
    "COUNT",
    "FROM_0",
    "IDS",
    "INTEGER",
    "OPTIONAL_SIZE",
    "RANGE",
    "RATIO",
    "SCALES",
    "SHARE",
    "SIZE",
    "TEXT",
    "TRIPLE",
    "ArgumentError",
    "CheckpointError",
    "DataError",
    "Kind",
    "NotBuilt",
    "VideoError",
    "expect",
    "expect_folder",
    "expect_function",
    "expect_matplotlib",
    "expect_one_of",
    "fail",
    "instance_of",
    "is_integer",
    "is_number",
    "not_built",
]


class _Sentence(Exception):
    """`<owner>: <argument> must <rule>, got <value>; <remedy>`.

    Args:
        owner: the function, class or file that the argument belongs to; "" leaves it out of the
            sentence.
        argument: its name, as in the signature.
        rule: what it must do or be.
        value: the given value, as the sentence shows it.
        remedy: what to do instead; "" where the rule says it already. It names other arguments as
            `name=value`.
        part: the part of the argument that is wrong, written directly behind its name.
    """

    def __init__(
        self,
        owner: str,
        argument: str,
        rule: str,
        value: object,
        remedy: str = "",
        part: str = "",
    ) -> None:
        # unpickling calls the class with `args`, so pass every field
        super().__init__(owner, argument, rule, value, remedy, part)
        self.owner, self.argument, self.rule = owner, argument, rule
        self.value, self.remedy, self.part = value, remedy, part

    @property
    def owner_is_file(self) -> bool:
        """Whether the owner is a file, such as config.json, and not a function or class."""
        return "." in self.owner

    def with_name(self, name: str) -> str:
        """The sentence with another name for the argument, such as a command line's option."""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{name}{self.part} must {self.rule}, got {self.value}{remedy}"

    def __str__(self) -> str:
        sentence = self.with_name(self.argument)
        return f"{self.owner}: {sentence}" if self.owner else sentence


class ArgumentError(_Sentence, ValueError):
    """An argument breaks its rule: `<owner>: <argument> must <rule>, got <value>; <remedy>`.

    Attributes:
        owner, argument, rule, value, remedy, part: what the sentence is made of.
    """


class NotBuilt(_Sentence, NotImplementedError):
    """A legal value that nothing serves yet, in the same words."""


class CheckpointError(ArgumentError):
    """A checkpoint cannot be read, does not fit the model, or cannot be written."""


class VideoError(ValueError):
    """A video that cannot be read, or not whole.

    Args:
        fault: names the video and says what is wrong with it.
        argument: the argument that makes it readable nevertheless, if there is one.
        remedy: how to set that argument.
    """

    def __init__(self, fault: str, argument: str | None = None, remedy: str = "") -> None:
        super().__init__(fault, argument, remedy)
        self.fault, self.argument, self.remedy = fault, argument, remedy

    def __str__(self) -> str:
        return f"{self.fault}; {self.remedy}" if self.remedy else self.fault


class DataError(ValueError):
    """A row of training data that cannot be used.

    Args:
        where: the row, as "file:line" or "source:row".
        fault: what is wrong with it.
    """

    def __init__(self, where: str, fault: str) -> None:
        super().__init__(where, fault)
        self.where, self.fault = where, fault

    def __str__(self) -> str:
        return f"{self.where}: {self.fault}"


def fail(owner: str, argument: str, rule: str, value: object, remedy: str = "") -> NoReturn:
    """Raise the ArgumentError that shows `value` as Python writes it."""
    raise ArgumentError(owner, argument, rule, repr(value), remedy)


def not_built(owner: str, name: str, rule: str, value: Any) -> NoReturn:
    """Raise the NotImplementedError `<owner>: <name> must <rule>, got <value>`."""
    raise NotBuilt(owner, name, rule, repr(value))


def expect_folder(owner: str, name: str, path: str | os.PathLike[str]) -> None:
    """Raise an ArgumentError for a path that cannot become a directory with new files in it: there
    is a file, or nothing may be written."""
    for place in (Path(path), *Path(path).parents):
        if os.path.lexists(place):
            if not place.is_dir():
                what = (
                    f"{path}, where {place} is a file" if place != Path(path) else f"{path}, a file"
                )
                raise ArgumentError(owner, name, "be a directory or the name of a new one", what)
            if not os.access(place, os.W_OK | os.X_OK):
                what = f"{path}, where {place} is read-only" if place != Path(path) else str(path)
                raise ArgumentError(owner, name, "be a directory that can be written to", what)
            return


def expect_function(owner: str, **given: Any) -> None:
    """Raise an ArgumentError for values that are neither callable nor None."""
    for name, value in given.items():
        if value is not None and not callable(value):
            fail(owner, name, "be a function or None", value)


def expect_matplotlib(owner: str, extra: str) -> None:
    """Refuse figures before the work if nothing can draw them.

    Args:
        owner: what draws.
        extra: the optional dependency that brings matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        remedy = f"install timeviper-fast[{extra}], or draw none"
        raise ArgumentError(owner, "matplotlib", "be installed", "none", remedy) from error


class Kind(NamedTuple):
    """A rule for fields, in words and as a test."""

    rule: str
    holds: Callable[[Any], bool]


def is_integer(value: Any) -> bool:
    """Whether `value` is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite float, or an integer within the range of floats."""
    if is_integer(value):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float) and math.isfinite(value)


def instance_of(kind: type) -> Kind:
    return Kind(f"be a {kind.__name__}", lambda v: isinstance(v, kind))


INTEGER = Kind("be an integer", is_integer)
COUNT = Kind("be an integer of 0 or more", lambda v: is_integer(v) and v >= 0)


def expect(owner: str, config: Any, kind: Kind, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not kind.holds(value):
            fail(owner, name, kind.rule, value)


def _all(holds: Callable[[Any], bool], value: Any, length: int | None = None) -> bool:
    """Whether `value` is a tuple (of this length) and `holds` is true of every item."""
    return isinstance(value, tuple) and length in (None, len(value)) and all(map(holds, value))


def _is_range(value: Any) -> bool:
    """Whether `value` is a tuple (low, high), 0 <= low <= high; only high may be infinite."""
    if not (isinstance(value, tuple) and len(value) == 2):
        return False
    low, high = value
    return is_number(low) and (is_number(high) or high == math.inf) and 0 <= low <= high


TEXT = Kind("be a text that is not empty", lambda v: isinstance(v, str) and v.strip() != "")
BOOL = Kind("be True or False", lambda v: isinstance(v, bool))
# above the bound no tensor could be allocated; this error says so more clearly than PyTorch's
SIZE = Kind("be a positive integer up to 2^24", lambda v: is_integer(v) and 0 < v <= 1 << 24)
OPTIONAL_SIZE = Kind(f"{SIZE.rule} or None", lambda v: v is None or SIZE.holds(v))
ABOVE_0 = Kind("be a finite number above 0", lambda v: is_number(v) and v > 0)
FROM_0 = Kind("be a finite number of 0 or more", lambda v: is_number(v) and v >= 0)
RATIO = Kind("lie in (0, 1]", lambda v: is_number(v) and 0 < v <= 1)
SHARE = Kind("lie in [0, 1)", lambda v: is_number(v) and 0 <= v < 1)
RANGE = Kind("be a tuple (low, high) of numbers with 0 <= low <= high", _is_range)
TRIPLE = Kind("be a tuple of 3 finite numbers", lambda v: _all(is_number, v, 3))
SCALES = Kind("be a tuple of 3 finite numbers above 0", lambda v: _all(ABOVE_0.holds, v, 3))
IDS = Kind("be a tuple of token ids (0 or more)", lambda v: _all(COUNT.holds, v))


def expect_one_of(owner: str, name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse a value that is none of `choices`."""
    if value not in choices:
        fail(owner, name, f"be one of {', '.join(map(repr, choices))}", value)
