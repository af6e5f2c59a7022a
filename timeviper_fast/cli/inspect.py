"""`timeviper-fast info` and `doctor`: what a model is made of, which backend runs here."""

from __future__ import annotations

import json
from glob import escape, glob
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from timeviper_fast.cli.app import REMEDY, Json, version
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.config import TimeViperConfig
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import fail
from timeviper_fast.presets import PRESETS, preset

__all__ = ["config_of", "doctor", "info", "model_names"]


def model_names(incomplete: str) -> list[str]:
    """What completes the start of a model's name: presets, the embedded model and directories."""
    known = [name for name in (*PRESETS, TINY) if name.startswith(incomplete)]
    return known + sorted(f"{p}/" for p in glob(f"{escape(incomplete)}*") if Path(p).is_dir())


def info(
    model: Annotated[
        str,
        typer.Argument(
            help=f"A model directory, a Hub id, {TINY} (in the package) or a preset: "
            f"{', '.join(PRESETS)}.",
            autocompletion=model_names,
        ),
    ],
    as_json: Json = False,
) -> None:
    """What a model is made of, without loading its weights."""
    with importing():
        from timeviper_fast.checkpoint.config_file import config_to_dict
        from timeviper_fast.cli.terminal import out, say
        from timeviper_fast.inference.facts import model_facts

    config = config_of(model, "MODEL")
    facts = model_facts(config)
    if as_json:
        typer.echo(json.dumps({"config": config_to_dict(config), **facts}))
        return
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) else value
        say(out, f"{name.replace('_', ' ')}: {text}", wrap=True)


def config_of(model: str, argument: str) -> TimeViperConfig:
    """The config of a preset, a model directory or a Hub id; no weights are read.

    Raises:
        ArgumentError: of `argument`: none of these.
    """
    if model not in PRESETS and "/" not in model and not Path(model or "-").exists():
        kinds = f"a preset ({', '.join(PRESETS)}), a model directory or a Hub id (owner/name)"
        fail("", argument, f"be {kinds}", model)
    with importing():
        from timeviper_fast.checkpoint.load import read_config

    return preset(model) if model in PRESETS else read_config(model)


def doctor(as_json: Json = False) -> None:
    """Which backend runs each op on this machine.

    And who provides the functions that other people's models call.
    """
    with importing():
        import torch

        from timeviper_fast.cli.terminal import out, print_table
        from tvkernels import explain, providers

    rows = explain()
    if as_json:
        typer.echo(json.dumps([row.__dict__ for row in rows]))
        return
    typer.echo(f"timeviper-fast {version()}")
    # torch.__version__ includes the build tag (+cu130); the package metadata may not
    typer.echo(f"torch {torch.__version__}")
    for name in ("triton", "transformers", "av", "pillow"):
        typer.echo(f"{name} {_version(name)}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    typer.echo(f"CUDA device: {gpu}\n")
    header = ("op", "kernel", "on", "backend", "why")
    print_table(out, header, [(r.op, r.kernel, r.device, r.backend, r.reason) for r in rows])
    if any(row.backend == "unavailable" for row in rows):
        typer.echo(f"\nWhat is unavailable: {REMEDY}.")
    typer.echo()
    who = [(row.library, row.function, row.provider) for row in providers()]
    print_table(out, ("library", "function", "provided by"), who)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
