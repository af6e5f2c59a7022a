"""`timeviper-fast corpus`: questions about many videos, each answered exactly once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from timeviper_fast.cli.app import (
    MODEL_HELP,
    BackendName,
    Chunk,
    Device,
    Dtype,
    DtypeName,
    FrameBatch,
    Json,
    Quiet,
    Salvage,
    Sample,
    StagesText,
    named,
)
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import ArgumentError, expect_folder
from timeviper_fast.inference.request import Opening, Question

if TYPE_CHECKING:
    from timeviper_fast.corpus.answer import Options
    from timeviper_fast.corpus.run import Worker

__all__ = ["app"]

app = typer.Typer(
    help="Questions about many videos, each answered exactly once.", rich_markup_mode=None
)


@app.command()
def run(
    questions: Annotated[
        str,
        typer.Argument(help="A .jsonl, .json or .parquet file: a video and its questions a row."),
    ],
    out: Annotated[
        str, typer.Option(help="Folder of the records; a stopped run continues.", callback=named)
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    policy: Sample = None,
    stages: StagesText = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer.")
    ] = Question.max_new_tokens,
    salvage: Salvage = False,
    frame_batch: FrameBatch = Opening.frame_batch,
    chunk: Chunk = Opening.chunk,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only part I of N, from 0 on: $RANK/$WORLD_SIZE."),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Make records anew that have an error.")
    ] = False,
    ray: Annotated[
        int | None, typer.Option(metavar="N", help="On Ray, with N models at a time.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running cluster ('auto'); default: one is started here.")
    ] = None,
    quiet: Quiet = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
) -> None:
    """Ask all questions about all videos: a session for each video, and a record for each row.

    Start it again after a stop, or in several processes at the same time: every row is answered
    once. A video that cannot be read is a record with the error; so is one whose process ended
    twice.
    """
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars, say
        from timeviper_fast.corpus.answer import Options
        from timeviper_fast.corpus.cluster import run_on_ray
        from timeviper_fast.corpus.rows import read_rows, shard_of
        from timeviper_fast.corpus.run import run_corpus
    on_error = "use" if salvage else "raise"
    opening = Opening(
        policy, frame_batch=frame_batch, chunk=chunk, on_error=on_error, stages=stages
    )
    options = Options(opening, max_new_tokens)
    part = _parsed_shard(shard)
    if ray is None and ray_address is not None:
        raise ArgumentError("", "ray_address", "be left out without --ray", ray_address)
    expect_folder("", "out", out)
    rows = list(shard_of(read_rows(questions), *part))
    made = partial(
        _worker, model, out, options, retry_errors, device=device, dtype=dtype, backend=backend
    )
    with progress_bars(err, hidden=quiet) as progress:
        if ray is None:
            counts = run_corpus(made(progress=partial(progress, "weights")), rows, progress)
        else:
            gpus = 0 if device == "cpu" else _gpus_each()
            counts = run_on_ray(
                made, rows, workers=ray, gpus=gpus, address=ray_address, progress=progress
            )
    if not quiet:
        say(err, ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())))
        say(err, f"wrote {out}")


def _worker(
    model: str,
    out: str,
    options: Options,
    retry_errors: bool,
    *,
    device: str | None,
    dtype: DtypeName | None,
    backend: Literal["reference", "triton"] | None,
    progress: Callable[[int, int], None] | None = None,
) -> Worker:
    """A worker with its own model; it runs in the process that asks."""
    from timeviper_fast.corpus.records import Records
    from timeviper_fast.corpus.run import Worker
    from timeviper_fast.timeviper import TimeViper

    loaded = TimeViper.from_pretrained(model, device=device, dtype=dtype, progress=progress)
    return Worker(loaded, Records(os.path.abspath(out)), options, retry_errors, backend)


def _gpus_each() -> int:
    """GPUs of each actor: one where the machine has some."""
    import torch

    return int(torch.cuda.is_available())


def _parsed_shard(shard: str | None) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ArgumentError("", "shard", "be I/N with 0 <= I < N, such as 3/8", shard)
    return int(index), int(count)


@app.command()
def status(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of records.")],
    as_json: Json = False,
) -> None:
    """How many records a folder has, and how many of them with an error."""
    with importing():
        from timeviper_fast.cli.terminal import out, print_table
        from timeviper_fast.corpus.records import Records
        from timeviper_fast.corpus.run import status as status_of
    found: dict[str, Any] = asdict(status_of(Records(folder)))
    if as_json:
        typer.echo(json.dumps(found))
        return
    names = {
        "records": "records",
        "errors": "records with an error",
        "questions": "questions",
        "unanswered": "questions with an error",
        "begun": "rows begun and not ended",
    }
    lines = [(text, f"{found[name]:,}") for name, text in names.items()]
    print_table(out, (folder, "number"), lines)


@app.command()
def collect(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of records.")],
    into: Annotated[str, typer.Option(help="A .parquet or .jsonl file.", callback=named)],
) -> None:
    """Write all answers into one file, sorted, one row for each question."""
    with importing():
        from timeviper_fast.cli.terminal import err, say
        from timeviper_fast.corpus.collect import collect as write
        from timeviper_fast.corpus.records import Records
    say(err, f"{into}: {write(Records(folder), into):,} answers")
