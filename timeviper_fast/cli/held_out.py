"""`timeviper-fast held-out`: what a model has learnt, and what it has only seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from timeviper_fast.cli.app import MODEL_HELP, Json, StagesText, named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.cli.needle import items
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import expect_folder, fail

__all__ = ["held_out"]


def held_out(
    *,
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    out: Annotated[
        str, typer.Option(help="Folder of the results; a stopped run continues.", callback=named)
    ] = "held-out",
    trained_seed: Annotated[
        int, typer.Option(help="Seed of the frames that training drew.", min=0)
    ] = 1,
    seed: Annotated[
        int, typer.Option(help="Seed of other frames and of scenes.", min=0)
    ] = 1_000_003,
    level: Annotated[str, typer.Option(help="Level of the world: study or hard.")] = "study",
    frames: Annotated[
        str, typer.Option(help="Lengths of videos that training has.")
    ] = "128,512,1024",
    other_frames: Annotated[
        str, typer.Option(help="Lengths of videos that it has not.")
    ] = "90,1500,3000",
    videos: Annotated[int, typer.Option(help="Videos of each length.", min=1)] = 110,
    tasks: Annotated[str, typer.Option(help="Tasks, as in `needle`.")] = "sign,colour,chain,count",
    points: Annotated[
        float, typer.Option(help="Percent points that a set may lie below the drawn one.", min=0)
    ] = 3.0,
    pool: Annotated[
        int | None, typer.Option(help="Plain frames of a pool; default: 12,000.", min=2)
    ] = None,
    stages: StagesText = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Compare wordings, frames and lengths that training has not seen with those that it has.

    The exit code is 1 if a set lies more than --points below the drawn one.
    """
    with importing():
        from timeviper_fast.cli.terminal import err, print_table, progress_bars
        from timeviper_fast.cli.terminal import out as screen
        from timeviper_fast.evaluation.held_out import HeldOutPlan, run_held_out
        from timeviper_fast.evaluation.score import Score
        from timeviper_fast.synthetic.pool import PoolSize
        from timeviper_fast.timeviper import TimeViper
    plan = HeldOutPlan(
        trained_seed=trained_seed,
        seed=seed,
        level=level,
        frames=tuple(items(frames, int, "frames")),
        other_frames=tuple(items(other_frames, int, "other_frames")),
        videos=videos,
        tasks=tuple(items(tasks, str, "tasks")),
        points=points,
        pool=PoolSize() if pool is None else PoolSize(plain=pool),
        stages=stages,
    )
    expect_folder("held_out", "out", out)
    loaded = TimeViper.from_pretrained(model)
    if loaded.tokenizer is None:
        fail("held_out", "model", "have a tokenizer", model)
    with progress_bars(err, hidden=quiet) as progress:
        found = run_held_out(loaded, loaded.tokenizer, plan, Path(out), progress=progress)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        header = ("set", "task", "right", "difference")
        rows = [
            (r["set"], r["task"], str(Score(r["right"], r["n"])), f"{r['difference']:+.1f}")
            for r in found["sets"]
        ]
        print_table(screen, header, rows)
    if not all(row["holds"] for row in found["sets"] if row["task"] == "all"):
        raise typer.Exit(1)
