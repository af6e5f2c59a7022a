"""`timeviper-fast ask`: a question about a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timeviper_fast.cli.app import (
    MODEL_HELP,
    VIDEO_HELP,
    BackendName,
    Chunk,
    Device,
    Dtype,
    FrameBatch,
    Json,
    Quiet,
    Salvage,
    StagesText,
    named,
)
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.cli.session import format_of, refuse_opening
from timeviper_fast.embedded.models import TINY, embedded_directory
from timeviper_fast.errors import ArgumentError, expect_matplotlib
from timeviper_fast.inference.request import Request, Sampling

if TYPE_CHECKING:
    from pathlib import Path

    from timeviper_fast.config import CompressionStage
    from timeviper_fast.video import Progress, Video

__all__ = ["ask", "source_of"]

_POLICIES = ("fps:1", "fps:2:max=256", "uniform:32", "upstream", "videochat-flash")


def ask(
    context: typer.Context,
    video: Annotated[str, typer.Argument(help=VIDEO_HELP, callback=named)],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    policy: Annotated[
        str | None,
        typer.Option(
            "--sample",
            help=f"{', '.join(_POLICIES)}; default: the model's.",
            autocompletion=lambda incomplete: [
                policy for policy in _POLICIES if policy.startswith(incomplete)
            ],
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Look at the video from here on: 90, 1:30 or 1:02:03.5.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Look at the video up to here.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest answer, in tokens.")
    ] = Request.max_new_tokens,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = Sampling.temperature,
    top_k: Annotated[
        int, typer.Option(help="Draw from the k most likely; 0: from all.")
    ] = Sampling.top_k,
    top_p: Annotated[float, typer.Option(help="Draw from this much probability.")] = Sampling.top_p,
    seed: Annotated[int | None, typer.Option(help="Makes a draw repeatable.")] = Sampling.seed,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1: fewer repeated words; default: the model's."),
    ] = Sampling.repetition_penalty,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="Show a single image whole and cut into tiles.")
    ] = Request.tiles,
    answer_prefix: Annotated[
        str, typer.Option(help="Words the answer must begin with.")
    ] = Request.answer_prefix,
    mention_duration: Annotated[
        bool | None,
        typer.Option(help="Tell it the video's length and frame count; default: the model's."),
    ] = Request.mention_duration,
    think: Annotated[
        bool | None,
        typer.Option(help="Think before answering; default: as the question says, else not."),
    ] = Request.think,
    stages: StagesText = None,
    salvage: Salvage = False,
    frame_batch: FrameBatch = Request.frame_batch,
    chunk: Chunk = Request.chunk,
    stream: Annotated[
        bool, typer.Option(help="Print the answer as it is written; no progress bars.")
    ] = False,
    times: Annotated[bool, typer.Option(help="Show the stops with times and sizes.")] = False,
    as_json: Json = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="File for the answer or the JSON object.", callback=named
        ),
    ] = None,
    evidence: Annotated[
        str | None,
        typer.Option(
            help="PNG file for where the model looked when it chose what to keep.", callback=named
        ),
    ] = None,
    quiet: Quiet = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
) -> None:
    """Answer a question about a video, or from a file that index wrote of one.

    Without --model the small model of the package answers. It was trained on synthetic frames of 48
    pixels: it knows signs, coloured shapes and chains of cards, and counts shapes, less well
    (`demo` writes such a video). Its answers about other videos mean nothing.
    """
    with importing():
        from timeviper_fast.cli.output import writable
        from timeviper_fast.cli.terminal import err, out, progress_bars, say, show, speaking
        from timeviper_fast.inference.ask import answer, answer_from
        from timeviper_fast.inference.evidence_plot import plot_evidence
        from timeviper_fast.timeviper import TimeViper
        from tvkernels import use_backend
    # check the options, and later the times, before the model is loaded
    request = Request(
        question,
        policy=policy,
        start=start,
        end=end,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p, seed, repetition_penalty),
        answer_prefix=answer_prefix,
        mention_duration=mention_duration,
        think=think,
        frame_batch=frame_batch,
        chunk=chunk,
        on_error="use" if salvage else "raise",
        tiles=tiles,
    )
    level = format_of(video)
    if level is not None:
        refuse_opening(context, video, level)
    inputs = (video, str(embedded_directory(model) or model))
    target = None if output in (None, "-") else writable(output, inputs)
    picture = None if evidence is None else _picture(evidence, inputs)
    with (
        use_backend(backend) if backend else nullcontext(),
        progress_bars(err, hidden=stream or quiet) as progress,
        source_of(video, level, request, progress) as source,
        speaking(out, stream and not as_json) as on_text,
    ):
        name, notes = (video, ()) if source is None else (source.name, source.notes)
        for note in () if quiet else notes:
            say(err, f"{name}: {note}")
        loaded = TimeViper.from_pretrained(
            model,
            device=device,
            dtype=dtype,
            stages=stages,
            progress=partial(progress, "weights"),
        )
        session = loaded.load_session(video) if level == "session" else None
        if picture is not None:
            _expect_evidence(loaded.config.stages if session is None else session.stages, picture)
        options: Any = {"on_text": on_text, "progress": progress, "control": picture is not None}
        if session is not None:
            said = answer_from(session, request, **options)
        else:
            said = answer(loaded, loaded.tokenizer, source or video, request, **options)
        for note in () if quiet else said.notes[len(notes) :]:
            say(err, f"{name}: {note}")
    show(said, times=times, as_json=as_json, streamed=stream, quiet=quiet, target=target)
    if picture is not None and said.evidence is not None:
        plot_evidence(said.evidence, picture, question)


def _picture(path: str, inputs: Sequence[str]) -> Path:
    """Where the evidence is drawn, if it can be: known before a model is loaded."""
    expect_matplotlib("ask", "plot")
    from timeviper_fast.cli.output import writable

    return writable(path, inputs, "evidence")


def _expect_evidence(stages: Sequence[CompressionStage], picture: Path) -> None:
    """Refuse a picture of what no stage of the model records."""
    if not any(stage.select == "attention" for stage in stages):
        rule = "be left out for a model without a stage that selects by attention"
        raise ArgumentError("", "evidence", rule, picture)


@contextmanager
def source_of(
    video: str, level: str | None, request: Request, progress: Progress
) -> Iterator[Video | None]:
    """The opened video; None where it is a file of one that was read."""
    if level is not None:
        yield None
        return
    from timeviper_fast.video import open_video

    with open_video(video, on_error=request.on_error, progress=progress) as source:
        source.span(request.start, request.end)
        yield source
