"""`timeviper-fast train`: train a model as a TOML file says, or continue a run that stopped."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from timeviper_fast.cli.app import named
from timeviper_fast.cli.interrupt import importing

__all__ = ["train"]

# most faulty rows to list for each source
_SHOWN = 20


def train(
    config: Annotated[
        str, typer.Argument(help="The run as a TOML file (docs/training.md).", callback=named)
    ],
    check: Annotated[
        bool, typer.Option("--check", help="List every faulty row of the data, and train nothing.")
    ] = False,
) -> None:
    """Train a model; a stopped run continues from its last snapshot."""
    with importing():
        from timeviper_fast.cli.terminal import err, say, training_bar
        from timeviper_fast.synthetic.kinds import check_synthetic, synthetic_source
        from timeviper_fast.training.config import read_config
        from timeviper_fast.training.kinds import CHECKS, KINDS, check_settings, check_sources
        from timeviper_fast.training.trainer import train

    run = read_config(config)
    kinds = {**KINDS, "synthetic": synthetic_source}
    checks = {**CHECKS, "synthetic": check_synthetic}
    if check:
        check_settings(run, kinds, checks)
        wrong = 0
        for source, faults in check_sources(run):
            wrong += len(faults)
            say(err, f"{source.name}: {len(faults)} faulty rows")
            for fault in faults[:_SHOWN]:
                say(err, f"  {fault.where}: {fault.reason}", wrap=True)
            if len(faults) > _SHOWN:
                say(err, f"  and {len(faults) - _SHOWN} more")
        found = f"{wrong} faulty rows" if wrong else "no fault"
        say(err, f"{config}: the model's config, the options and the rows were read: {found}")
        raise typer.Exit(2 if wrong else 0)
    with training_bar(err) as progress:
        last = train(run, kinds, checks=checks, progress=progress)
    # under torchrun every process runs this line; rank 0 prints
    if os.environ.get("RANK", "0") == "0":
        typer.echo(last)
