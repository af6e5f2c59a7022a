"""`timeviper-fast index`: videos that are read once, each into a file for questions."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from timeviper_fast.cli.app import (
    MODEL_HELP,
    BackendName,
    Chunk,
    Device,
    Dtype,
    FrameBatch,
    Quiet,
    Salvage,
    Sample,
    StagesText,
    named,
)
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.cli.mistakes import one_line
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import ArgumentError, expect_folder
from timeviper_fast.inference.request import Opening

__all__ = ["index"]


def index(
    videos: Annotated[list[str], typer.Argument(help="Video files, or what else ask takes.")],
    into: Annotated[
        str,
        typer.Option(
            help="Directory of the files, each NAME.session or NAME.features.", callback=named
        ),
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    level: Annotated[
        Literal["session", "features"],
        typer.Option(help="features: small, and for any LLM behind the same vision encoder."),
    ] = "session",
    policy: Sample = None,
    start: Annotated[
        str | None, typer.Option(help="Look at the videos from here on: 90, 1:30 or 1:02:03.5.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Look at the videos up to here.")] = None,
    lead: Annotated[
        str, typer.Option(help="Words in front of the video in every question.")
    ] = Opening.lead,
    stages: StagesText = None,
    salvage: Salvage = False,
    frame_batch: FrameBatch = Opening.frame_batch,
    chunk: Chunk = Opening.chunk,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that do not fit, and damaged ones.")
    ] = False,
    quiet: Quiet = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
) -> None:
    """Read videos once, each into a file that ask answers questions from.

    A file that fits model, video and options is kept. A video that cannot be read, or whose file
    does not fit, is reported, and the others are read nevertheless; the exit code is then 2.
    """
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars, say
        from timeviper_fast.corpus.library import Library
        from timeviper_fast.timeviper import TimeViper
        from tvkernels import use_backend
    opening = Opening(
        policy, start, end, lead, frame_batch, chunk, "use" if salvage else "raise", stages
    )
    if level == "features":
        for name in ("lead", "stages", "chunk"):
            if getattr(opening, name) != getattr(Opening, name):
                rule = "be left out with --level features, which the LLM does not read"
                raise ArgumentError("", name, rule, getattr(opening, name))
    expect_folder("", "into", into)
    targets = _targets(videos, Path(into).expanduser(), level)
    failed = 0
    with (
        use_backend(backend) if backend else nullcontext(),
        progress_bars(err, hidden=quiet) as progress,
    ):
        loaded = TimeViper.from_pretrained(
            model, device=device, dtype=dtype, progress=partial(progress, "weights")
        )
        folder = Path(into).expanduser()
        library = Library(loaded, folder, opening, level, overwrite=overwrite, progress=progress)
        library.expect_room(targets.items())
        for video, target in targets.items():
            try:
                done = library.write(video, target)
            except Exception as error:
                line = one_line(error, _NAMES)
                if line is None:
                    raise
                failed += 1
                say(err, f"{video}: {line.removeprefix(f'{video}: ')}")
            else:
                if not quiet:
                    say(err, f"{target}: {done}")
        library.close()
    if failed:
        raise typer.Exit(2)


# what the library calls by another name, or names in a remedy
_NAMES = {
    "policy": "--sample",
    "frame_batch": "--frame-batch",
    "overwrite": "--overwrite",
    "salvage": "--salvage",
    **{name: f"--{name}" for name in ("start", "end", "lead", "stages", "chunk")},
}


def _targets(videos: list[str], folder: Path, level: str) -> dict[str, Path]:
    """{video: its file}.

    Raises:
        ArgumentError: two videos would have the same file, or one is a pipe without a name.
    """
    targets: dict[str, Path] = {}
    for video in videos:
        name = Path(os.path.abspath(video)).name
        if video in ("-", "") or not name:
            raise ArgumentError(
                "", "VIDEO", "have a name, which its file is called by", repr(video)
            )
        # the suffix stays in the name: a.mp4 and a.mkv are two videos
        target = folder / f"{name}.{level}"
        other = next((key for key, value in targets.items() if value == target), None)
        if other is not None:
            rule = f"have different names: both would be {target}"
            raise ArgumentError("", "VIDEO", rule, f"{other} and {video}")
        targets[video] = target
    return targets
