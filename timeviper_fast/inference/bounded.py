"""What a stream forgets when it may hold only so much: approximate, and never the default.

The Mamba-2 states have seen every frame. Keys, values and rows of forgotten frames are gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from timeviper_fast.errors import ArgumentError

__all__ = ["Bound", "Thin", "Window", "parse_bound"]

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
# a window lets so much more than its length pile up before it forgets, so that it moves the rest
# seldom
_SLACK = 1 / 8


class Bound(Protocol):
    """Which frames are forgotten."""

    def gone(self, seconds: Tensor) -> Tensor:
        """Positions (n,) int64 among the frames that are left, whose times are `seconds`."""
        ...


@dataclass(frozen=True)
class Window:
    """The frames of the last `length` seconds stay, for a while up to an eighth more."""

    length: float

    def gone(self, seconds: Tensor) -> Tensor:
        old = int((seconds < seconds[-1] - self.length).sum()) if len(seconds) else 0
        if not old or seconds[-1] - seconds[0] <= self.length * (1 + _SLACK):
            old = 0
        return torch.arange(old)


@dataclass(frozen=True)
class Thin:
    """As many frames stay as come in `length` seconds; when they are full, every second one of the
    oldest half goes, so that the past gets sparser with its age."""

    length: float

    def gone(self, seconds: Tensor) -> Tensor:
        count = len(seconds)
        if count < 4:
            return torch.arange(0)
        # the rate at which frames come now: the older ones are thinned already
        latest = seconds[-min(count, 17) :]
        step = float(latest[-1] - latest[0]) / (len(latest) - 1)
        return torch.arange(1, count // 2, 2) if count * step > self.length else torch.arange(0)


def parse_bound(text: str) -> Bound:
    """`window:2h` or `thin:90m`: the kind, and seconds (s), minutes (m) or hours (h).

    Raises:
        ValueError: another form.
    """
    form = r"(window|thin):(\d+(?:\.\d+)?)(s|m|min|h)"
    found = re.fullmatch(form, text) if isinstance(text, str) else None
    length = float(found[2]) * _UNITS[found[3]] if found else 0.0
    if not found or not length:
        rule = "be window:LENGTH or thin:LENGTH, as window:2h, thin:90m or window:30s"
        raise ArgumentError("stream", "bounded", rule, repr(text))
    return Window(length) if found[1] == "window" else Thin(length)
