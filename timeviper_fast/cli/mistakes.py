"""A mistake as one line, in the words of the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

import typer

from timeviper_fast.cli.app import REMEDY
from timeviper_fast.errors import ArgumentError, NotBuilt, VideoError

__all__ = ["one_line"]

_MISTAKES = (ValueError, OSError, ImportError, NotImplementedError)


def one_line(error: Exception, names: Mapping[str, str]) -> str | None:
    """The error as one line, or None for an error that is no user's mistake.

    Args:
        error: what a command raised.
        names: what the command line calls the library's arguments, as `argument` or
            `owner.argument`.
    """
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        see = f"; see {context.command_path} --help" if context else ""
        # pydantic, which checks a choice for Typer, puts its own words in front of the sentence
        return error.format_message().replace("Value error, ", "").rstrip(".") + see
    if type(error).__name__ == "OutOfMemory":
        return str(error)
    if _is(error, "torch", "OutOfMemoryError"):
        remedy = "try a smaller --frame-batch or --chunk, or fewer frames with --sample"
        return f"the device ran out of memory; {remedy}"
    if _is(error, "tvkernels", "BackendUnavailable"):
        _, obstacle, _ = error.args
        return f"{obstacle}; {REMEDY}"
    if isinstance(error, VideoError) and error.argument == "on_error":
        has_it = "salvage" in names
        return f"{error.fault}; --salvage takes what can be decoded" if has_it else error.fault
    if isinstance(error, (ArgumentError, NotBuilt)):
        return _in_options(error, names)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, _MISTAKES):
        return str(error) or type(error).__name__
    return None


def _in_options(error: ArgumentError | NotBuilt, names: Mapping[str, str]) -> str:
    """The sentence without the function that refused, with options in place of its arguments."""
    argument = error.argument
    name = names.get(f"{error.owner}.{argument}") or names.get(argument, argument)
    sentence = error.with_name(name)
    # A remedy names other arguments as name=value. An option that is a switch has no value.
    remedy = re.sub(
        r"\b(\w+)=(True\b)?",
        lambda found: names[found[1]] + " " * (not found[2]) if found[1] in names else found[0],
        error.remedy,
    )
    sentence = sentence.removesuffix(error.remedy) + remedy
    # a table of a file, such as "phase 'long'", is where to look; a function is not
    of_a_table = " " in error.owner
    return f"{error.owner}: {sentence}" if error.owner_is_file or of_a_table else sentence


def _is(error: Exception, module: str, name: str) -> bool:
    """Whether it is an error of a library, which has been imported if it is."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)
