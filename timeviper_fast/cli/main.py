"""The command line: ask, info, convert, doctor, demo.

The answer (or JSON) goes to standard output, progress and tables to standard error. A mistake is
one line on standard error and exit code 2; Ctrl-C is exit code 130; --debug shows tracebacks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import typer

from timeviper_fast.cli.app import REMEDY, options
from timeviper_fast.cli.ask import ask
from timeviper_fast.cli.convert import convert
from timeviper_fast.cli.demo import demo
from timeviper_fast.cli.inspect import doctor, info
from timeviper_fast.cli.terminal import err, say
from timeviper_fast.errors import ArgumentError, VideoError
from tvkernels import BackendUnavailable

__all__ = ["app", "main"]

app = typer.Typer(
    help="Questions and answers about hour-long videos.",
    add_completion=False,
    pretty_exceptions_enable=False,
    # Rich draws boxes, which leave too little width for help texts in 80 columns
    rich_markup_mode=None,
)
app.callback()(options)
for command in (ask, info, doctor, convert, demo):
    app.command()(command)


def main() -> None:
    """Run the command line; mistakes are one line and an exit code."""
    if sys.stdout is None:
        say(err, "timeviper-fast: standard output must be open, got it closed; >/dev/null drops it")
        sys.exit(2)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    error: Exception | None = None
    code, line = 0, ""
    try:
        code = app(arguments or ["--help"], standalone_mode=False) or 0
    except KeyboardInterrupt:
        code = 130
    except (
        typer.TyperException,
        torch.OutOfMemoryError,
        ValueError,
        OSError,
        ImportError,
        NotImplementedError,
        BackendUnavailable,
    ) as caught:
        error, code, line = caught, 2, _in_options(caught, arguments)
    if code == 130:
        # Typer turns Ctrl-C into this exit code
        line = "interrupted"
    if error is not None and debug:
        raise error
    if line:
        say(err, f"timeviper-fast: {' '.join(line.split())}")
    sys.exit(code)


def _in_options(error: Exception, arguments: Sequence[str]) -> str:
    """The error as one line, with the command's options in place of the library's arguments."""
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        see = f"; see {context.command_path} --help" if context else ""
        return error.format_message().rstrip(".") + see
    if isinstance(error, torch.OutOfMemoryError):
        remedy = "try a smaller --frame-batch or --chunk, or fewer frames with --sample"
        return f"the device ran out of memory; {remedy}"
    line = str(error) or type(error).__name__
    if isinstance(error, BackendUnavailable):
        return f"{line.partition('; ')[0]}; {REMEDY}"

    if isinstance(error, VideoError) and error.argument == "on_error":
        return f"{error.fault}; --salvage takes what can be decoded"
    if isinstance(error, ArgumentError):
        option = _options(arguments).get(error.argument)
        return error.with_name(option) if option else line
    return line


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """{argument of the library: option} of the command that was called."""
    commands = typer.main.get_group(app).commands
    parameters = next((commands[word].params for word in arguments if word in commands), [])
    return {p.name: p.opts[0] for p in parameters if p.name and p.param_type_name == "option"}
