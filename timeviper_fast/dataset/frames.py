"""The choice of a video's frames, from the times of its frames alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from timeviper_fast.dataset.media import Timeline
from timeviper_fast.dataset.sample import Limits
from timeviper_fast.errors import ArgumentError, fail, is_integer, is_number
from timeviper_fast.video.sampling import Uniform, VideoChatFlash
from timeviper_fast.video.times import frames_between

__all__ = ["Chosen", "Sampling"]

# Seconds. A duration this close to a whole number counts as that number.
_ROUNDING = 1e-6


class Chosen(NamedTuple):
    """Frames of a part of a video.

    Attributes:
        positions: (n,) int64, ascending, into the video's frames; n is a multiple of `clip_frames`,
            and 1 for an image.
        seconds: (n,) float64, their times in the video.
        start: time of the part's first frame in the video, in seconds.
        duration: seconds from `start` to the part's end.
        sampled: number of frames without the copies of the last one that fill its clip; the
            sentence about the sampling names this number.
    """

    positions: Tensor
    seconds: Tensor
    start: float
    duration: float
    sampled: int


@dataclass(frozen=True)
class Sampling:
    """How frames are sampled.

    Attributes:
        rule: how many frames: "fps:RATE" takes RATE frames per second, clamped to the limits of the
            phase; "uniform" takes as many as the limits allow; "videochat-flash" is that project's
            rule (one frame per second in clips of 4). The video is divided into equal
            intervals, and the middle frame of each is taken.
        jitter: take a random frame of each interval instead of the middle one.
        clip_frames: frames per clip that the model merges; the number of frames is a multiple.

    Raises:
        ValueError: a field breaks its rule.
    """

    rule: str = "fps:1"
    jitter: bool = False
    clip_frames: int = 1

    def __post_init__(self) -> None:
        if self.rule not in ("uniform", "videochat-flash") and _rate(self.rule) is None:
            fail("Sampling", "rule", "be one of fps:RATE, uniform, videochat-flash", self.rule)
        if not isinstance(self.jitter, bool):
            fail("Sampling", "jitter", "be True or False", self.jitter)
        if not (is_integer(self.clip_frames) and self.clip_frames >= 1):
            fail("Sampling", "clip_frames", "be an integer above 0", self.clip_frames)
        if self.rule == "videochat-flash" and self.jitter:
            rule = "be False for rule='videochat-flash', which takes the middles"
            fail("Sampling", "jitter", rule, self.jitter)
        if self.rule == "videochat-flash" and 4 % self.clip_frames:
            rule = "divide 4 for rule='videochat-flash'"
            fail("Sampling", "clip_frames", rule, self.clip_frames)

    @property
    def unit(self) -> int:
        """The number of frames is a multiple of this."""
        return 4 if self.rule == "videochat-flash" else self.clip_frames

    def bounds(self, limits: Limits) -> tuple[int, int]:
        """Fewest and most frames, in whole clips.

        Raises:
            ArgumentError: no whole clip is allowed.
        """
        most = limits.max_frames // self.unit * self.unit
        if not most:
            rule = f"allow a whole clip ({self.unit} frames)"
            raise ArgumentError("Limits", "max_frames", rule, limits.max_frames)
        return min(-(-limits.min_frames // self.unit) * self.unit, most), most

    def choose(
        self,
        timeline: Timeline,
        start: float | None,
        end: float | None,
        limits: Limits,
        seed: int = 0,
    ) -> Chosen:
        """The frames of a video, or of its part from `start` to `end`.

        Args:
            timeline: the frame times of the video.
            start, end: seconds of the video; None for all of it.
            limits: the limits of the phase.
            seed: seed of the jitter.

        Raises:
            ArgumentError: the part lies outside the video.
        """
        first, stop, duration = frames_between(timeline.seconds, timeline.duration, start, end)
        seconds = timeline.seconds[first:stop]
        least, most = self.bounds(limits)
        if self.rule == "videochat-flash":
            local = VideoChatFlash(least, most, 4).choose(seconds, timeline.fps, duration)
            sampled = len(local)
        else:
            count = self._count(duration, stop - first, least, most)
            local = _from_intervals(count, stop - first, seed if self.jitter else None)
            sampled = len(local)
            local = torch.cat([local, local[-1:].expand(-sampled % self.unit)])
        return Chosen(local + first, seconds[local], float(seconds[0]), duration, sampled)

    def _count(self, duration: float, frames: int, least: int, most: int) -> int:
        """Frames to take: whole clips, unless the video is shorter than one."""
        rate = _rate(self.rule)
        wanted = most if rate is None else int(min(duration * rate + _ROUNDING, most))
        wanted = max(wanted // self.unit * self.unit, least)
        return min(wanted, max(frames // self.unit * self.unit, min(frames, self.unit)))


def _rate(rule: str) -> float | None:
    """RATE of "fps:RATE", or None."""
    name, _, text = rule.partition(":") if isinstance(rule, str) else ("", "", "")
    try:
        rate = float(text)
    except ValueError:
        return None
    return rate if name == "fps" and is_number(rate) and rate > 0 else None


def _from_intervals(count: int, total: int, seed: int | None) -> Tensor:
    """One of each of `count` equal intervals of `total` positions: its middle, or a drawn one."""
    if seed is None or count == total:
        return Uniform(count).choose(torch.arange(total), 1.0, 1.0)
    edges = [i * total // count for i in range(count + 1)]
    draw = Random(seed)
    return torch.tensor([draw.randrange(low, high) for low, high in pairwise(edges)])
