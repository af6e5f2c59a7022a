"""The output of the command line: lines, tables, progress bars, answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from timeviper_fast.cli.output import write
from timeviper_fast.inference.answer import Answer
from timeviper_fast.stops import STOPS, Stop

if TYPE_CHECKING:
    from timeviper_fast.training.phase import TrainingProgress

__all__ = [
    "err",
    "out",
    "print_stops",
    "print_table",
    "progress_bars",
    "say",
    "show",
    "speaking",
    "training_bar",
]

out, err = Console(), Console(stderr=True)


def say(console: Console, text: str, *, wrap: bool = False) -> None:
    """Print `text` without markup. `wrap` breaks lines between words, on terminals only."""
    soft = not (wrap and console.is_terminal)
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=soft)


@contextmanager
def speaking(console: Console, wanted: bool) -> Iterator[Callable[[str], None] | None]:
    """Print an answer as it is generated, and end its line even if it is interrupted."""
    said = False

    def speak(text: str) -> None:
        nonlocal said
        said = True
        console.file.write(text)
        console.file.flush()

    try:
        yield speak if wanted else None
    finally:
        if said:
            console.file.write("\n")


@contextmanager
def progress_bars(
    console: Console, hidden: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per kind of work, on terminals only, even if colours are forced."""
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=hidden or not console.file.isatty()
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, amount="")
            bars.update(tasks[what], completed=done, total=total, amount=_amount(what, done, total))

        yield update


@contextmanager
def training_bar(console: Console) -> Iterator[Callable[[TrainingProgress], None]]:
    """A progress bar of each phase with its metrics; without a terminal, lines."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    shown = console.file.isatty()
    with Progress(*columns, console=console, disable=not shown) as bars:
        tasks: dict[str, TaskID] = {}

        def update(at: TrainingProgress) -> None:
            figures = (
                f"{at.step}/{at.steps} loss {at.values['loss']:.3f} "
                f"right {100 * at.values['sample_accuracy']:.1f} % "
                f"{at.values['tokens_per_second']:,.0f} tokens/s"
            )
            if at.phase not in tasks:
                tasks[at.phase] = bars.add_task(at.phase, total=at.steps, figures="")
            bars.update(tasks[at.phase], completed=at.step, figures=figures)
            if not shown:
                say(console, f"{at.phase} {figures}")

        yield update


def _amount(what: str, done: int, total: int) -> str:
    if what == "scan":
        return f"{done / 1e6:,.1f}/{total / 1e6:,.1f} MB"
    return f"{done:,}/{total:,}"


def print_stops(console: Console, stops: Sequence[Stop]) -> None:
    """A table of the stops, compression stages indented, with the total time of the eight."""
    rows = [
        (
            re.sub(r"prefill: (\w+) stage before", r"  \1 at", stop.name),
            stop.shape,
            stop.tokens,
            f"{stop.milliseconds:,.1f}",
            f"{stop.peak_bytes / 2**20:,.0f} MiB",
        )
        for stop in stops
    ]
    # the time of a compression stage is already part of prefill's
    total = sum(stop.milliseconds for stop in stops if stop.name in STOPS)
    peak = max(stop.peak_bytes for stop in stops) / 2**20
    rows.append(("total", "", "", f"{total:,.1f}", f"{peak:,.0f} MiB"))
    print_table(console, ("stop", "shape", "tokens", "ms", "peak memory so far"), rows)


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns. On a narrow terminal, the first cell of a row goes above the others.

    If the other cells do not fit in a line either, they become a paragraph.
    """
    lines = [header, *rows]
    width = console.width if console.is_terminal else None
    whole = _aligned(lines)
    below = [f"    {line}" for line in _aligned([line[1:] for line in lines])]
    if width is None or max(map(len, whole)) <= width:
        texts = whole
    elif max(map(len, below)) <= width:
        texts = [f"{first}\n{rest}" for (first, *_), rest in zip(lines, below)]
    else:
        texts = []
        for first, *rest in rows:
            about = ", ".join(f"{name} {value}" for name, value in zip(header[1:], rest) if value)
            indent = " " * 4
            wrapped = fill(about, width, initial_indent=indent, subsequent_indent=indent)
            texts.append(f"{first}\n{wrapped}")
    say(console, "\n".join(texts))


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def show(
    answer: Answer,
    *,
    times: bool,
    as_json: bool,
    streamed: bool = False,
    quiet: bool = False,
    target: Path | None = None,
) -> None:
    """Write an answer to `target` or standard output, with the optional parts."""
    if answer.model_note and not quiet and not as_json:
        say(err, answer.model_note, wrap=True)
    text = json.dumps(answer.to_dict()) if as_json else answer.text
    if target is not None:
        _deliver(text, target)
        if not quiet:
            say(err, f"wrote {target}")
    elif as_json or not streamed:
        _print(text)
    if answer.lost_frames and not quiet and not as_json:
        say(err, _loss(answer))
    if times and not as_json:
        print_stops(err, answer.stops)


def _print(text: str) -> None:
    out.file.write(f"{text}\n")
    out.file.flush()


def _deliver(text: str, target: Path) -> None:
    try:
        write(target, text)
    except OSError:
        # The disk may be full. Print the answer, which may have taken hours, before the error.
        _print(text)
        raise


def _loss(answer: Answer) -> str:
    lost, seen = answer.lost_frames, len(answer.frame_seconds)
    count = "1 frame of the video is" if lost == 1 else f"{lost} frames of the video are"
    estimate = "an estimate where its end is cut off"
    return f"{count} missing or damaged ({estimate}); {seen} were looked at"
