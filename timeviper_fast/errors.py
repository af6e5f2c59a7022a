"""The errors that users see, and the checks that config and layout share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

__all__ = [
    "COUNT",
    "INTEGER",
    "ArgumentError",
    "CheckpointError",
    "DataError",
    "Kind",
    "NotBuilt",
    "VideoError",
    "expect",
    "expect_function",
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


def expect_function(owner: str, **given: Any) -> None:
    """Raise an ArgumentError for values that are neither callable nor None."""
    for name, value in given.items():
        if value is not None and not callable(value):
            fail(owner, name, "be a function or None", value)


class Kind(NamedTuple):
    """A rule for fields, in words and as a test."""

    rule: str
    holds: Callable[[Any], bool]


def is_integer(value: Any) -> bool:
    """Whether `value` is an int and no bool."""
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
