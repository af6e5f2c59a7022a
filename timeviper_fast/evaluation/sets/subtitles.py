"""The subtitles of a set's videos, and those that are spoken while a frame is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from timeviper_fast.errors import DataError, Kind, fail, is_number
from timeviper_fast.evaluation.sets.files import Record, read_lines, records
from timeviper_fast.evaluation.sets.row import SetRow

__all__ = ["Line", "Subtitles", "read_subtitles", "spoken", "subtitles_of"]

_CLOCK = r"(\d+):(\d\d):(\d\d(?:[.,]\d+)?)"
_SRT = re.compile(rf"{_CLOCK}\s*-->\s*{_CLOCK}.*")
_TAG = re.compile(r"<[^>]*>")
_TEXT = Kind("be a text", lambda v: isinstance(v, str))
_TIME = Kind(
    "be a time such as 00:01:02.500",
    lambda v: isinstance(v, str) and re.fullmatch(_CLOCK, v) is not None,
)
_PAIR = Kind(
    "be a list [start, end] of seconds, the end null if it is not known",
    lambda v: (
        isinstance(v, list)
        and len(v) == 2
        and is_number(v[0])
        and (v[1] is None or is_number(v[1]))
    ),
)


class Line(NamedTuple):
    """What is spoken from `start` to `end`, in seconds of the subtitles' own clock."""

    start: float
    end: float
    text: str


Subtitles = dict[Path, list[Line]]


def subtitles_of(rows: Sequence[SetRow]) -> Subtitles:
    """The lines of all files that the rows name.

    Raises:
        ArgumentError: no row has subtitles of one line after another.
        DataError: a file is not of its format; it names file and line.
    """
    files = {row.subtitles for row in rows if row.subtitles is not None}
    files = {path for path in files if path.suffix in (".srt", ".json")}
    if not files:
        rule = "be left out for rows without .srt or .json subtitles"
        remedy = "video-mme has them in subtitle/, longvideobench in subtitles/"
        fail("eval", "subtitles", rule, rows[0].set, remedy)
    return {path: read_subtitles(path) for path in sorted(files)}


def read_subtitles(path: Path) -> list[Line]:
    """The lines of an .srt file or of LongVideoBench's .json file.

    In the second a line of less than a second counts as one second about its middle, as in the
    authors' code. A line whose end is not known lasts to the end of the video.

    Raises:
        DataError: a line is not of the format; it names file and line.
    """
    return list(_srt(path) if path.suffix == ".srt" else map(_line, records(path)))


def spoken(lines: Sequence[Line], seconds: Sequence[float]) -> list[str]:
    """The texts that are spoken while one of the frames is shown, in order.

    Equal texts that follow each other are one.

    Args:
        lines: of one video.
        seconds: when the frames are shown, on the subtitles' clock.
    """
    found: list[str] = []
    for line in sorted(lines):
        if any(line.start <= at < line.end for at in seconds) and line.text not in found[-1:]:
            found.append(line.text)
    return found


def _srt(path: Path) -> Iterator[Line]:
    """Blocks of a number, a line of times, and lines of text, some of which may be empty."""
    times, texts = None, list[str]()
    for number, raw in enumerate(read_lines(path), 1):
        text = _TAG.sub("", raw.lstrip("\ufeff")).strip()
        if "-->" in raw:
            # the line in front is the number of the new block
            yield from _block(times, texts[:-1] if texts and texts[-1].isdecimal() else texts)
            times, texts = _SRT.fullmatch(raw.strip()), []
        else:
            texts.append(text)
        if times is None and text and not text.isdecimal():
            fault = f"the line must be a number or `start --> end`, not {raw.strip()[:80]!r}"
            raise DataError(f"{path}:{number}", fault)
    yield from _block(times, texts)


def _block(times: re.Match[str] | None, texts: Sequence[str]) -> Iterator[Line]:
    if times is not None and any(texts):
        start, end = times.groups()[:3], times.groups()[3:]
        yield Line(_seconds(start), _seconds(end), " ".join(filter(None, texts)))


def _line(record: Record) -> Line:
    if "timestamp" in record.fields:
        start, end = record.get("timestamp", _PAIR)
        text = record.get("text", _TEXT)
    else:
        start, end = (_clock(record.get(name, _TIME)) for name in ("start", "end"))
        text = record.get("line", _TEXT)
    end = inf if end is None else end
    if end - start < 1:
        middle = (start + end) / 2
        start, end = middle - 0.5, middle + 0.5
    return Line(start, end, text.strip())


def _clock(text: str) -> float:
    found = re.fullmatch(_CLOCK, text)
    assert found is not None
    return _seconds(found.groups())


def _seconds(parts: Sequence[Any]) -> float:
    hours, minutes, seconds = parts
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds.replace(",", "."))
