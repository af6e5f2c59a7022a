"""`timeviper-fast train-tiny`: train a small model of the synthetic world from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from timeviper_fast.cli.app import named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.errors import expect_matplotlib, fail

__all__ = ["train_tiny"]


def train_tiny(
    folder: Annotated[
        str, typer.Argument(help="Folder of the run; a stopped run continues.", callback=named)
    ],
    steps: Annotated[
        int | None,
        typer.Option(help="Most steps of each part, for a trial run.", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, frames and questions.", min=0)] = 0,
    curves: Annotated[
        str | None,
        typer.Option(help="Draw the run's curves into this PNG file (needs matplotlib)."),
    ] = None,
) -> None:
    """Train a small model of the synthetic world from random weights, on a CPU.

    OMP_NUM_THREADS=1 in the environment makes it take one thread.
    """
    with importing():
        from timeviper_fast.cli.terminal import err, say, training_bar
        from timeviper_fast.evaluation.curves import draw_curves
        from timeviper_fast.synthetic.tiny import TinyPlan, train_tiny

    if curves is not None:
        if Path(curves).suffix != ".png":
            fail("train-tiny", "curves", "be the name of a .png file", curves)
        expect_matplotlib("figures", "evaluation")
    plan = TinyPlan(seed=seed) if steps is None else TinyPlan.short(steps, seed)

    def on_vision(line: dict[str, Any]) -> None:
        glyphs, plain = 100 * line["study"]["second"], 100 * line["study"]["false"]
        say(
            err,
            f"vision {line['step']}/{plan.vision.steps} loss {line['loss']:.3f} "
            f"glyphs wrong {glyphs:.2f} %, plain frames {plain:.2f} %",
        )

    with training_bar(err) as progress:
        model = train_tiny(folder, plan, on_vision=on_vision, progress=progress)
    if curves is not None:
        draw_curves(folder, curves)
    typer.echo(model)
