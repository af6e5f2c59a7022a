"""`timeviper-fast watch`: questions about a video that goes on."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from timeviper_fast.cli.app import MODEL_HELP, BackendName, Device, Dtype, StagesText, named
from timeviper_fast.cli.interrupt import importing
from timeviper_fast.cli.mistakes import one_line
from timeviper_fast.embedded.models import TINY
from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.request import Question, Sampling

if TYPE_CHECKING:
    from timeviper_fast.inference.watch import Reply
    from timeviper_fast.video import FrameStream

__all__ = ["lines", "watch"]

# what questions call the options
_NAMES = {name: f"--{name}" for name in ("bounded", "even", "stages")}
_NAMES["max_new_tokens"] = "--max-new-tokens"


def watch(
    source: Annotated[
        str,
        typer.Argument(
            help="A file that is being written, a directory that fills; with --live a camera.",
            callback=named,
        ),
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP, callback=named)] = TINY,
    policy: Annotated[
        str, typer.Option("--sample", help="fps:RATE, the pace at which frames are looked at.")
    ] = "fps:1",
    bounded: Annotated[
        str | None,
        typer.Option(help="window:2h or thin:2h: constant memory, approximate answers."),
    ] = None,
    even: Annotated[
        bool,
        typer.Option(
            "--even", help="Thin by a rhythm or in windows, whatever the stages; approximate."
        ),
    ] = False,
    at_end: Annotated[
        bool, typer.Option("--at-end", help="Answer the questions when the source has ended.")
    ] = False,
    idle: Annotated[
        float, typer.Option(help="Seconds without growth after which it has ended; 0: never.")
    ] = 10.0,
    fps: Annotated[
        float, typer.Option(help="Images per second of a directory; 0: the files' times.")
    ] = 1.0,
    live: Annotated[
        bool, typer.Option("--live", help="SOURCE is what PyAV opens: a camera or an address.")
    ] = False,
    format: Annotated[str | None, typer.Option(help="PyAV's name of its format, as v4l2.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for PyAV; may be repeated.")
    ] = None,
    room: Annotated[int, typer.Option(help="Frames that may wait for the model.")] = 64,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest answer, in tokens.")
    ] = Question.max_new_tokens,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = Sampling.temperature,
    seed: Annotated[int | None, typer.Option(help="Makes a draw repeatable.")] = Sampling.seed,
    stages: StagesText = None,
    frame_batch: Annotated[int, typer.Option(help="Frames encoded at a time.")] = 16,
    chunk: Annotated[int, typer.Option(help="Tokens per pass through the LLM.")] = 1024,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each answer.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notes.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
) -> None:
    """Answer questions about a video while it goes on.

    Questions are read line by line from standard input. Each is answered on the frames that came
    before it, while further frames are collected; its end ends the command. When more frames wait
    than --room, a file or a directory is read later, and of a --live source the oldest waiting
    frame is dropped and counted.
    """
    with importing():
        from timeviper_fast.cli.terminal import err, say
        from timeviper_fast.inference.watch import Watcher
        from timeviper_fast.timeviper import TimeViper
        from timeviper_fast.video import open_stream
        from tvkernels import use_backend
    # check the options before the model is loaded
    asked = Question("?", max_new_tokens, Sampling(temperature=temperature, seed=seed))
    if room < 1:
        raise ArgumentError("", "room", "be a positive number of frames", room)
    if sys.stdin is None:
        raise ArgumentError("", "standard input", "be open: questions are read from it", "closed")
    note = (lambda text: None) if quiet else partial(say, err)
    with (
        use_backend(backend) if backend else nullcontext(),
        open_stream(
            source,
            policy,
            quiet=idle or None,
            fps=fps or None,
            live=live,
            format=format,
            options=_pairs(option or []),
        ) as frames,
    ):
        loaded = TimeViper.from_pretrained(model, device=device, dtype=dtype)
        session = loaded.stream(
            chunk=chunk, frame_batch=frame_batch, stages=stages, bounded=bounded, even=even
        )
        ask = partial(session.ask, max_new_tokens=asked.max_new_tokens, sampling=asked.sampling)
        watcher = Watcher(
            frames, session.push, ask, room=room, drops=live, at_end=at_end,
            on_end=partial(_ended, frames, note),
        )  # fmt: skip
        if loaded.note and not as_json:
            note(loaded.note)
        failed = 0
        with closing(watcher.replies(lines(sys.stdin))) as replies:
            for reply in replies:
                failed += reply.error is not None
                _show(reply, frames, note, room, as_json)
    if failed:
        raise typer.Exit(2)


def _show(reply: Reply, frames: FrameStream, note: Any, room: int, as_json: bool) -> None:
    """Print an answer, or what was wrong with its question."""
    line = None
    if reply.error is not None:
        line = one_line(reply.error, _NAMES)
        if line is None:
            raise reply.error
    if as_json:
        typer.echo(json.dumps(_facts(reply, frames, line)))
    elif line is None:
        typer.echo(reply.answer.text)
    if line is not None and not as_json:
        typer.echo(f"timeviper-fast: {reply.question!r}: {' '.join(line.split())}", err=True)
    for sentence in () if line is not None or as_json else reply.answer.notes:
        note(sentence)
    if reply.dropped:
        note(f"{reply.dropped} frames were dropped so far: they came faster than they are read")
    elif reply.waiting >= room:
        note(f"{reply.waiting} frames wait: the source is faster than the model")


def _facts(reply: Reply, frames: FrameStream, error: str | None) -> dict[str, Any]:
    """What a line of JSON holds: the answer's own fields, or the error, and the stream's."""
    said: dict[str, Any] = {"error": error} if error is not None else reply.answer.to_dict()
    return said | {
        "question": reply.question,
        "frames": reply.frames,
        "second": reply.second,
        "waiting_frames": reply.waiting,
        "dropped_frames": reply.dropped,
        "lost_frames": frames.lost_frames,
        "repeated_frames": frames.repeated_frames,
        "notes": [*frames.notes, *said.get("notes", ())],
    }


def _ended(frames: FrameStream, note: Any, error: Exception | None) -> None:
    note(f"{frames.name}: it has ended" + (f" ({error})" if error else ""))
    for sentence in frames.notes:
        note(f"{frames.name}: {sentence}")


def _pairs(options: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in options]
    for text, (name, equals, _) in zip(options, pairs):
        if not (name and equals):
            raise ArgumentError("", "option", "have the form NAME=VALUE", repr(text))
    return {name: value for name, _, value in pairs}


def lines(stream: TextIO) -> Iterator[str]:
    """The lines of a text stream that are not blank, each as soon as it is there.

    A file is read by its number: a thread that waits in the stream's own buffer would keep the
    interpreter from shutting down.
    """
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        # a stream in memory
        yield from filter(None, map(str.strip, stream))
        return
    decoder = codecs.getincrementaldecoder(stream.encoding or "utf-8")(errors="replace")
    begun, is_open = "", True
    while is_open:
        data = os.read(number, 1 << 16)
        is_open = bool(data)
        *whole, begun = (begun + decoder.decode(data, final=not is_open)).split("\n")
        yield from filter(None, map(str.strip, whole if is_open else [*whole, begun]))
