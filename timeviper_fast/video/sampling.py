"""Sampling policies: pure functions from the times of a video's frames to frame positions.

A policy is a small frozen dataclass with one method, `choose(seconds, fps, duration)`, that returns
ascending positions into `seconds`. `parse_policy` reads one from its short text form. Only
`Upstream` and `VideoChatFlash` may repeat a position, and only to fill whole 4-frame clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Protocol

import torch
from torch import Tensor

from timeviper_fast.errors import ArgumentError, fail, is_integer, is_number
from timeviper_fast.video.times import Span

__all__ = [
    "TIE",
    "Fps",
    "Linspace",
    "Policy",
    "Uniform",
    "Upstream",
    "VideoChatFlash",
    "parse_policy",
    "smaller",
]

CLIP_FRAMES = 4
# upstream reads no frame of a part's last tenth of a second before the video's end
_LAST_MOMENT = 0.1
TIE = 1e-6
"""In sampling intervals: times that differ by less count as equal (rounding)."""


class Policy(Protocol):
    """Chooses frames of a video."""

    def choose(self, seconds: Tensor, fps: float, duration: float) -> Tensor:
        """Positions of the frames to look at.

        Args:
            seconds: (T,) float64, presentation time of every frame, ascending, T >= 1.
            fps: average frames per second of the video.
            duration: seconds from the first frame's appearance to the last one's end.

        Returns:
            (n,) int64 positions into `seconds`, ascending, 1 <= n.
        """
        ...


@dataclass(frozen=True)
class Fps:
    """`fps` frames per second of presentation time, independent of the file's own rate.

    For the instants t0, t0 + 1/fps, ... up to the video's end the frame nearest in time is chosen
    (the earlier one of two equally near). Each frame is chosen at most once: where the file has
    fewer frames per second than `fps`, all of them are taken. If more than `max_frames` result,
    that many of them are kept, spread evenly over the whole video (policy `upstream` drops the end
    instead).

    At a constant rate of at least `fps` these are upstream's positions round(k * file_fps / fps),
    except for ties: of two frames equally near, upstream takes the one of even number (at 12.5
    frames per second every fourth position is one later than here). At a variable rate, frame
    numbers do not tell times. Use `upstream` to get exactly upstream's frames.
    """

    fps: float = 1.0
    max_frames: int | None = None

    def __post_init__(self) -> None:
        _expect_fps("Fps", self.fps)
        if self.max_frames is not None:
            _expect_count("Fps", "max", self.max_frames)

    def choose(self, seconds: Tensor, fps: float, duration: float) -> Tensor:
        elapsed = seconds - seconds[0]
        end = elapsed.new_tensor([max(duration, float(elapsed[-1]))])
        # Frame i is nearest between the midpoints to its neighbours. It is chosen if an instant
        # k / fps falls between them. This is linear in T.
        middles = (elapsed + torch.cat([elapsed[1:], end])) / 2
        passed = torch.floor(middles * self.fps + TIE)
        chosen = torch.ones(len(seconds), dtype=torch.bool)
        chosen[1:] = passed[1:] > passed[:-1]
        positions = chosen.nonzero().squeeze(1)
        if self.max_frames is None or len(positions) <= self.max_frames:
            return positions
        return positions[_interval_centres(self.max_frames, len(positions))]


@dataclass(frozen=True)
class Uniform:
    """`frames` frames spread evenly over the file's frames, all of them if it has fewer."""

    frames: int

    def __post_init__(self) -> None:
        _expect_count("Uniform", "frames", self.frames)

    def choose(self, seconds: Tensor, fps: float, duration: float) -> Tensor:
        return _interval_centres(self.frames, len(seconds))


@dataclass(frozen=True)
class Linspace:
    """min(max_frames, floor(duration * fps)) frames, at least 1, from the first to the last.

    Position k of n is k * (T - 1) / (n - 1), truncated, of the video's T frames; all of them if it
    has fewer. Frames are spaced by number, whatever their times.
    """

    fps: float = 2.0
    max_frames: int = 128

    def __post_init__(self) -> None:
        _expect_fps("Linspace", self.fps)
        _expect_count("Linspace", "max", self.max_frames)

    def choose(self, seconds: Tensor, fps: float, duration: float) -> Tensor:
        last = len(seconds) - 1
        # compared before it is truncated: `fps` may be huge
        wanted = min(self.max_frames, duration * self.fps, len(seconds))
        count = max(1, int(wanted))
        # as numpy's linspace, whose float64 products decide the last bit
        positions = torch.arange(count, dtype=torch.float64) * (last / max(count - 1, 1))
        positions = positions.long()
        if count > 1:
            positions[-1] = last
        return positions


@dataclass(frozen=True)
class Upstream:
    """The rule of upstream TimeViper's evaluation, by frame number and average rate.

    Positions are round(k * file_fps / fps) in float32, half to even. If there are more than
    `max_frames`, the first ones are kept and the rest of the video is ignored. The last position is
    repeated up to a multiple of 4. If there are then fewer than `min_frames`, `min_frames` uniform
    ones are taken instead (all frames if the video has fewer; this may be no multiple of 4).
    """

    fps: float = 1.0
    max_frames: int = 256
    min_frames: int = 32

    def __post_init__(self) -> None:
        _expect_fps("Upstream", self.fps)
        _expect_counts("Upstream", self.min_frames, self.max_frames)

    def choose(self, seconds: Tensor, fps: float, duration: float) -> Tensor:
        total = len(seconds)
        step = fps / self.fps
        # build no more positions than are kept: `fps` may be a million
        end = min(total, step * (self.max_frames + 1))
        positions = torch.arange(0, end, step, dtype=torch.float32).round().long()
        positions = _fill_clips(positions[positions < total][: self.max_frames])
        if len(positions) < self.min_frames:
            return _interval_centres(self.min_frames, total)
        return positions


@dataclass(frozen=True)
class VideoChatFlash:
    """VideoChat-Flash's duration rule: one frame per second, in whole multiples.

    multiple * floor(duration / multiple) frames, at least `multiple` and `min_frames`, at most
    `max_frames` and the whole multiples that the video has, each from the middle of its interval.
    The last frame is repeated to fill the last 4-frame clip, and a video of fewer frames than
    `multiple` up to that many.

    Attributes:
        min_frames: None is 64, or `max_frames` where that is less.
        max_frames: also honoured below 64, which upstream does not.
        multiple: 8 is the rule of the released models, 4 the one they were trained with.
    """

    min_frames: int | None = None
    max_frames: int = 512
    multiple: int = 2 * CLIP_FRAMES

    def __post_init__(self) -> None:
        _expect_count("VideoChatFlash", "max", self.max_frames)
        least = min(64, self.max_frames) if self.min_frames is None else self.min_frames
        object.__setattr__(self, "min_frames", least)
        _expect_counts("VideoChatFlash", least, self.max_frames)
        if not (is_integer(self.multiple) and self.multiple in (4, 8)):
            fail("VideoChatFlash", "multiple", "be 4 or 8", self.multiple)

    def choose(self, seconds: Tensor, fps: float, duration: float) -> Tensor:
        total, step = len(seconds), self.multiple
        count = max(floor(duration / step), 1) * step
        count = min(max(count, self.min_frames or 1), self.max_frames)
        count = min(count, max(total // step, 1) * step)
        taken = min(count, total)
        # as numpy's linspace, whose float64 products decide the last bit
        edges = (torch.arange(taken + 1, dtype=torch.float64) * (total / taken)).long()
        edges[-1] = total
        return _filled((edges[:-1] + edges[1:] - 1) // 2, CLIP_FRAMES * ceil(count / CLIP_FRAMES))

    def span(
        self, seconds: Tensor, fps: float, duration: float, start: float | None, end: float | None
    ) -> Span | None:
        """Upstream's frames of a part of the video, by frame number and average rate; None where
        the rate is not constant, so that frame numbers do not tell times.

        The part begins with the frame that is shown at `start`. It ends 0.1 s before the video's
        end at the latest.
        """
        elapsed = seconds - seconds[0]
        even = torch.arange(len(seconds), dtype=torch.float64) / fps
        if bool(((elapsed - even).abs() > 0.5 / fps).any()):
            return None
        since = max(start or 0.0, 0.0)
        until = min(duration if end is None else end, duration - _LAST_MOMENT)
        first, frames = int(since * fps), int((until - since) * fps)
        stop = min(first + frames, len(seconds))
        return Span(first, stop, until - since) if first < stop else None


def parse_policy(text: str | Policy) -> Policy:
    """Read a sampling policy; one that is already built is returned as it is.

    The forms: `fps` or `fps:RATE[:max=N]`, `uniform:N`, `linspace[:fps=RATE][:max=N]`,
    `upstream[:fps=RATE][:max=N][:min=N]`, `videochat-flash[:max=N][:min=N][:multiple=4]`.

    Raises:
        ValueError: names the part of the text that breaks a rule, the rule and the value.
    """
    if not isinstance(text, str):
        if isinstance(text, type) or not callable(getattr(text, "choose", None)):
            fail("", "policy", "be a string as 'fps:1', or an object that can choose", text)
        return text
    try:
        return _parse(text)
    except ArgumentError as error:
        if error.argument == "policy":
            raise
        # a rule of the class: name the part of the text
        part = f" {text!r}: {error.argument}"
        raise ArgumentError("", "policy", error.rule, error.value, part=part) from None


def smaller(policy: str | Policy, frames: int) -> str | None:
    """The text form of a policy that chooses as `policy` does, but at most `frames` frames.

    None where there is none: other policies, and fewer frames than a clip has.
    """
    policy = parse_policy(policy)
    clips = frames - frames % CLIP_FRAMES
    if isinstance(policy, Fps):
        return f"fps:{policy.fps:g}:max={frames}"
    if isinstance(policy, Uniform):
        return f"uniform:{frames}"
    if isinstance(policy, Linspace):
        return f"linspace:fps={policy.fps:g}:max={frames}"
    if not isinstance(policy, (Upstream, VideoChatFlash)) or not clips:
        return None
    rate = f":fps={policy.fps:g}" if isinstance(policy, Upstream) and policy.fps != 1 else ""
    name, usual, rule = "upstream", Upstream.min_frames, ""
    if isinstance(policy, VideoChatFlash):
        name, usual = "videochat-flash", 64
        rule = f":multiple={policy.multiple}" if policy.multiple != 2 * CLIP_FRAMES else ""
    least = min(policy.min_frames or usual, clips)
    least_text = "" if least == usual else f":min={least}"
    return f"{name}{rate}:max={clips}{least_text}{rule}"


def _parse(text: str) -> Policy:
    name, *parts = text.strip().split(":")
    if name == "fps":
        rate = parts.pop(0) if parts and "=" not in parts[0] else "1"
        return Fps(_number(text, "fps", rate), **_options(text, parts, ("max",)))
    if name == "uniform":
        if len(parts) != 1:
            raise ArgumentError(
                "", "policy", "have the form uniform:N (N frames)", repr(text), part=f" {text!r}"
            )
        return Uniform(_whole(text, "frames", parts[0]))
    if name == "linspace":
        return Linspace(**_options(text, parts, ("fps", "max")))
    if name == "upstream":
        return Upstream(**_options(text, parts, ("fps", "max", "min")))
    if name == "videochat-flash":
        return VideoChatFlash(**_options(text, parts, ("max", "min", "multiple")))
    fail(
        "",
        "policy",
        "be one of fps:RATE[:max=N], uniform:N, linspace, upstream, videochat-flash",
        text,
    )


def _interval_centres(count: int, total: int) -> Tensor:
    """`count` of `total` positions: centres of equal intervals with truncated edges, or all."""
    if count >= total:
        return torch.arange(total)
    edges = _edges(count, total)
    return (edges[:-1] + edges[1:]) // 2


def _edges(count: int, total: int) -> Tensor:
    return torch.arange(count + 1) * total // count


def _fill_clips(positions: Tensor) -> Tensor:
    """Repeat the last position up to a whole number of clips."""
    return _filled(positions, CLIP_FRAMES * ceil(len(positions) / CLIP_FRAMES))


def _filled(positions: Tensor, count: int) -> Tensor:
    """Repeat the last position up to `count` of them."""
    return torch.cat([positions, positions[-1:].expand(count - len(positions))])


def _options(text: str, parts: list[str], allowed: tuple[str, ...]) -> dict[str, Any]:
    """Options such as `max=256` as keyword arguments of the policy."""
    given: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or key not in allowed:
            forms = ", ".join(f"{one}=VALUE" for one in allowed)
            raise ArgumentError(
                "", "policy", f"be one of {forms}", repr(part), part=f" {text!r}: option"
            )
        if key == "fps":
            given[key] = _number(text, key, value)
        elif key == "multiple":
            given[key] = _whole(text, key, value)
        else:
            given[f"{key}_frames"] = _whole(text, key, value)
    return given


def _number(text: str, part: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ArgumentError(
            "", "policy", "be a number", repr(value), part=f" {text!r}: {part}"
        ) from None


def _whole(text: str, part: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ArgumentError(
            "", "policy", "be a whole number", repr(value), part=f" {text!r}: {part}"
        ) from None


def _expect_fps(policy: str, value: float) -> None:
    if not (is_number(value) and value > 0):
        fail(policy, "fps", "be a finite number above 0", value)


def _expect_count(policy: str, field: str, value: int) -> None:
    if not (is_integer(value) and value >= 1):
        fail(policy, field, "be an integer of 1 or more", value)


def _expect_counts(policy: str, least: int, most: int) -> None:
    _expect_count(policy, "min", least)
    _expect_count(policy, "max", most)
    if least > most:
        fail(policy, "min", f"be at most max ({most})", least)
