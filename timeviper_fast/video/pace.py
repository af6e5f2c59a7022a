"""Sampling policies for videos without an end: frames are chosen as they come."""

from __future__ import annotations

from math import floor
from typing import Generic, TypeVar

from timeviper_fast.errors import ArgumentError
from timeviper_fast.video.sampling import TIE, Fps, Policy, parse_policy

__all__ = ["Pace", "online_policy"]

T = TypeVar("T")


class Pace(Generic[T]):
    """Chooses frames as `Fps(fps)` does, one frame behind their arrival.

    A frame is the one nearest to an instant if the instant lies between the middles to its
    neighbours, so the next frame's time must be known first. The choice is that of `Fps` for the
    whole video.

    Args:
        fps: frames per second.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._start: float | None = None
        self._passed: int | None = None
        self._held: tuple[T, float] | None = None

    def push(self, frame: T, second: float) -> list[T]:
        """Take the next frame, shown at `second`; the frame before it, if it is chosen."""
        if self._start is None:
            self._start = second
        elapsed = second - self._start
        chosen = self._decide(elapsed)
        self._held = (frame, elapsed)
        return chosen

    def end(self, last: float) -> list[T]:
        """There are no more frames; the last one, which is shown for `last` s, if it is chosen."""
        return self._decide(self._held[1] + max(last, 0.0)) if self._held else []

    def _decide(self, following: float) -> list[T]:
        """The frame that waits if it is chosen; the next one begins at `following`."""
        if self._held is None:
            return []
        frame, elapsed = self._held
        self._held = None
        passed = floor((elapsed + following) / 2 * self._fps + TIE)
        is_chosen = self._passed is None or passed > self._passed
        self._passed = passed
        return [frame] if is_chosen else []


def online_policy(policy: str | Policy) -> Fps:
    """The policy, if it can choose frames before the video has ended.

    Raises:
        ValueError: there is no such policy, or its choice depends on the video's end.
    """
    parsed = parse_policy(policy)
    if isinstance(parsed, Fps) and parsed.max_frames is None:
        return parsed
    if isinstance(parsed, Fps):
        why = "max=N spreads N frames over the whole video"
    else:
        why = "this one spreads its frames over the whole video"
    rule = f"be fps:RATE for a stream, because {why}, whose end is not known"
    raise ArgumentError("", "policy", rule, repr(policy))
