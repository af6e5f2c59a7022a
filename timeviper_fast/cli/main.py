"""The command line: ask, index, session, watch, plan, train, needle, eval, info and so on.

The answer (or JSON) goes to standard output, progress and tables to standard error. A mistake is
one line on standard error and exit code 2; Ctrl-C is exit code 130; --debug shows tracebacks.
A command imports torch when it runs, so that --help and shell completion answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import typer
from typer.core import TyperGroup

from timeviper_fast.cli.analyse import analyse
from timeviper_fast.cli.app import options
from timeviper_fast.cli.ask import ask
from timeviper_fast.cli.convert import convert
from timeviper_fast.cli.corpus import app as corpus
from timeviper_fast.cli.demo import demo
from timeviper_fast.cli.eval import eval
from timeviper_fast.cli.held_out import held_out
from timeviper_fast.cli.index import index
from timeviper_fast.cli.inspect import doctor, info
from timeviper_fast.cli.mistakes import one_line
from timeviper_fast.cli.needle import needle
from timeviper_fast.cli.plan import plan
from timeviper_fast.cli.serve import serve
from timeviper_fast.cli.session import app as session
from timeviper_fast.cli.train import train
from timeviper_fast.cli.train_tiny import train_tiny
from timeviper_fast.cli.watch import watch

__all__ = ["app", "main"]

app = typer.Typer(
    help="Questions and answers about hour-long videos.",
    pretty_exceptions_enable=False,
    # Rich draws boxes, which leave too little width for help texts in 80 columns
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(options)
_COMMANDS: tuple[Callable[..., None], ...] = (
    ask, index, watch, plan, train, train_tiny, needle, held_out, eval, analyse, info, doctor,
    convert, serve, demo,
)  # fmt: skip
for command in _COMMANDS:
    app.command()(command)
app.add_typer(session, name="session")
app.add_typer(corpus, name="corpus")


def main() -> None:
    """Run the command line; mistakes are one line and an exit code."""
    if sys.stdout is None:
        _complain("standard output must be open, got it closed; >/dev/null drops it")
        sys.exit(2)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    code, line = 0, None
    try:
        # one name, also for `python -m`: completion is installed under it
        run = app(arguments or ["--help"], prog_name="timeviper-fast", standalone_mode=False)
        code = run or 0
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 141
    except Exception as error:
        code, line = 2, one_line(error, _names(arguments))
        if line is None or debug:
            raise
    if code == 130:
        # Typer turns Ctrl-C into this exit code
        line = "interrupted"
    if line:
        _complain(line)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader has left (`| head -1`): nothing is left to say, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 141
    sys.exit(code)


def _complain(line: str) -> None:
    typer.echo(f"timeviper-fast: {' '.join(line.split())}", err=True)


# what the library calls by another name than the command's own function
_RENAMED = {
    "ask": {"checkpoint.path": "--model", "from_pretrained.path": "--model"},
    "analyse": {
        "checkpoint.path": "--model",
        "from_pretrained.path": "--model",
        "Looking.maps": "--heads",
    },
    "index": {"checkpoint.path": "--model", "from_pretrained.path": "--model"},
    "eval": {
        "checkpoint.path": "--model",
        "from_pretrained.path": "--model",
        "eval.set": "SET",
        "eval.folder": "DIR",
    },
    "corpus": {
        "checkpoint.path": "--model",
        "from_pretrained.path": "--model",
        "corpus.questions": "QUESTIONS",
        "corpus.folder": "DIR",
        "corpus.workers": "--ray",
    },
    "serve": {"checkpoint.path": "--model", "from_pretrained.path": "--model"},
    "held-out": {"checkpoint.path": "--model", "from_pretrained.path": "--model"},
    "watch": {
        "checkpoint.path": "--model",
        "from_pretrained.path": "--model",
        "open_stream.quiet": "--idle",
    },
    "plan": {"checkpoint.path": "--model", "from_pretrained.path": "--model"},
    "info": {"checkpoint.path": "model", "from_pretrained.path": "model"},
    "needle": {
        "checkpoint.path": "--model",
        "from_pretrained.path": "--model",
        "needle.controls": "--control",
        "needle.films": "haystack",
        "needle.keeps": "--keep",
    },
    "convert": {
        "checkpoint.path": "--llm or --model",
        "from_pretrained.path": "--model",
        "upstream.pdrop_type": "--pdrop",
        "upstream.merge_module": "--merge",
        "upstream.arch_specifier": "--arch",
        "upstream.vision_backbone_id": "--vision",
    },
}


def _names(arguments: Sequence[str]) -> dict[str, str]:
    """{argument of the library: its name on the command line} of the command that was called."""
    commands = typer.main.get_group(app).commands
    command = next((word for word in arguments if word in commands), None)
    if command is None:
        return {}
    found = commands[command]
    if isinstance(found, TyperGroup):
        # `corpus run`: the options are those of the command in the group
        found = next((found.commands[word] for word in arguments if word in found.commands), found)
    options = (p for p in found.params if p.param_type_name == "option")
    return {p.name: p.opts[0] for p in options if p.name} | _RENAMED.get(command, {})
