"""Times of a video: read and written as mm:ss, and the frames between two of them."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from timeviper_fast.errors import ArgumentError, fail, is_number

__all__ = ["Span", "Time", "clock", "frames_between", "parse_span", "parse_time"]

Time = float | str
"""Seconds, or text: seconds, mm:ss or hh:mm:ss, each with a fraction if wanted."""

# a player shows the end of a video as its next full second
_ROUNDED = 1.0
_TEXT = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)", re.ASCII)


class Span(NamedTuple):
    """The frames `first` to `stop - 1` of a video, and how many seconds they are shown."""

    first: int
    stop: int
    duration: float


def parse_time(name: str, value: Time) -> float:
    """Seconds, of a number or a text such as "90", "1:30" or "0:01:30.5".

    Raises:
        ArgumentError: of the argument `name`: no such time.
    """
    if is_number(value) and float(value) >= 0:
        return float(value)
    match = _TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match:
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        if (seconds < 60 or not match[2]) and (minutes < 60 or not match[1]):
            return 3600 * hours + 60 * minutes + seconds
    fail("", name, "be a time of 0 or more, as seconds, mm:ss or hh:mm:ss", value)


def parse_span(start: Time | None, end: Time | None) -> tuple[float | None, float | None]:
    """Both times in seconds.

    Raises:
        ArgumentError: of `start` or `end`: no time, or the end is not after the start.
    """
    first = None if start is None else parse_time("start", start)
    last = None if end is None else parse_time("end", end)
    if first is not None and last is not None and first >= last:
        raise ArgumentError("", "end", f"lie after the start ({clock(first)})", clock(last))
    return first, last


def frames_between(
    seconds: Tensor, duration: float, start: Time | None = None, end: Time | None = None
) -> Span:
    """The frames shown from `start` on and before `end`, in the times of the video.

    Args:
        seconds: (T,) float64, presentation time of every frame, ascending.
        duration: seconds from the first frame's appearance to the last one's end.
        start: None for the beginning.
        end: None for the end; it may lie less than a second behind it, as a rounded time does.

    Raises:
        ArgumentError: of `start` or `end`: it lies outside the video, or no frame lies between.
    """
    since, until = parse_span(start, end)
    beginning = float(seconds[0])
    ending = beginning + duration
    inside = f"lie within the video ({clock(beginning)} to {clock(ending)})"
    if since is not None and since >= ending:
        raise ArgumentError("", "start", inside, clock(since))
    if until is not None and not beginning < until < ending + _ROUNDED:
        raise ArgumentError("", "end", inside, clock(until))
    last = ending if until is None else min(until, ending)
    first = 0 if since is None else int(torch.searchsorted(seconds, since))
    stop = len(seconds) if until is None else int(torch.searchsorted(seconds, until))
    if first >= stop:
        near = ", ".join(clock(float(time)) for time in seconds[max(first - 1, 0) : first + 1])
        rule = f"have a frame between it and the end (nearest frames: {near})"
        raise ArgumentError("", "start", rule, f"{clock(since or beginning)} to {clock(last)}")
    return Span(first, stop, last - float(seconds[first]))


def clock(seconds: float) -> str:
    """mm:ss, or hh:mm:ss from an hour on, with hundredths of a second where there are any."""
    hundredths = round(abs(seconds) * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours:02d}:{minutes:02d}" if hours else f"{minutes:02d}"
    fraction = f".{rest % 100:02d}" if rest % 100 else ""
    sign = "-" if seconds < 0 and hundredths else ""
    return f"{sign}{text}:{rest // 100:02d}{fraction}"
