"""`timeviper-fast demo`: every part at work on a tiny random model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from timeviper_fast.cli.app import VIDEO_HELP, Json, named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.demo import QUESTION, tiny_model, write_demo_video
from timeviper_fast.inference.request import Request

__all__ = ["demo"]


def demo(
    video: Annotated[
        str | None,
        typer.Argument(help=f"{VIDEO_HELP} Default: one is written.", callback=named),
    ] = None,
    question: Annotated[str, typer.Option(help="What to ask about it.")] = QUESTION,
    directory: Annotated[
        str, typer.Option(help="Where the video is written.", callback=named)
    ] = "demo-output",
    seconds: Annotated[int, typer.Option(help="Length of the video written.", min=1)] = 60,
    as_json: Json = False,
) -> None:
    """Answer a question about a real video with a tiny random model."""
    with importing():
        from timeviper_fast.cli.terminal import err, progress_bars, say, show
        from timeviper_fast.inference.ask import answer
        from timeviper_fast.video import open_video
        from timeviper_fast.video.times import clock

    request = Request(question, max_new_tokens=24, mention_duration=True)
    path = video or str(Path(directory) / f"demo-{seconds}s.mp4")
    with progress_bars(err) as progress:
        if video is None:
            write_demo_video(path, seconds=seconds, progress=partial(progress, "video"))
        with open_video(path, progress=progress) as source:
            say(
                err,
                f"{path}: {clock(source.duration)} of video. The model is tiny and its weights are "
                "random (seeded): every part of TimeViper runs, but the answer means nothing.",
                wrap=True,
            )
            for note in source.notes:
                say(err, note, wrap=True)
            model = tiny_model()
            said = answer(model, model.tokenizer, source, request, progress=progress)
    say(err, f"Q {question}", wrap=True)
    show(said, times=True, as_json=as_json)
