"""The types that every source of training samples and the trainer share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from timeviper_fast.errors import COUNT, ArgumentError, expect, fail, is_integer, is_number
from timeviper_fast.text.messages import Message
from timeviper_fast.text.prompt import check_answered

__all__ = ["Cost", "Draw", "Limits", "Sample", "Source"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One answered conversation, and the frames or features that it is about.

    Attributes:
        messages: {"role", "content"} in turns, user first; they end with an assistant's answer.
        pixels: (frames, 3, S, S) float32, normalised for the model's vision encoder; or None. One
            frame is an image; a video has whole clips.
        features: (frames, n, vision_size), merged features (`Projector.merge`) instead of pixels;
            or None. Without pixels and features the sample is text only.
        preface: text directly after the vision tokens.
        placeholder: a mark in the messages that the vision tokens replace; None puts them before
            the first question.
        needed: numbers of the frames that answer the last question, ascending; () if unknown.
        seconds: the time of each frame; () if unknown.
        name: "source:row", for error messages and metrics.
        parts: (cache key, frames) of each of its videos; () without a cache of features.

    Raises:
        ValueError: a field breaks its rule.
    """

    messages: Sequence[Message]
    pixels: Tensor | None = None
    features: Tensor | None = None
    preface: str = ""
    placeholder: str | None = None
    needed: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    name: str = ""
    parts: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        check_answered(self.messages)
        if self.pixels is not None and self.features is not None:
            raise ArgumentError("Sample", "features", "be None beside pixels", "both")
        if self.pixels is not None and not _is_pixels(self.pixels):
            rule = "be (frames, 3, S, S) float32 with at least one frame, or None"
            raise ArgumentError("Sample", "pixels", rule, _told(self.pixels))
        if self.features is not None and not _is_features(self.features):
            rule = "be (frames, n, vision_size) of floats with at least one frame, or None"
            raise ArgumentError("Sample", "features", rule, _told(self.features))
        if not self.frames and (self.preface or self.placeholder is not None):
            name = "preface" if self.preface else "placeholder"
            fail("Sample", name, "be left out without pixels or features", getattr(self, name))
        self._check_frame_numbers()

    def _check_frame_numbers(self) -> None:
        frames, needed = self.frames, self.needed
        inside = all(is_integer(n) and 0 <= n < frames for n in needed)
        if not inside or list(needed) != sorted(set(needed)):
            rule = f"be ascending numbers of its {frames} frames"
            fail("Sample", "needed", rule, needed)
        if self.seconds and (len(self.seconds) != frames or not all(map(is_number, self.seconds))):
            rule = f"be empty or one time for each of its {frames} frames"
            fail("Sample", "seconds", rule, self.seconds)
        if self.parts and sum(count for _, count in self.parts) != frames:
            fail("Sample", "parts", f"have {frames} frames together", self.parts)

    @property
    def vision(self) -> Tensor | None:
        """Pixels or features, whichever the sample has; None for text only."""
        return self.features if self.pixels is None else self.pixels

    @property
    def frames(self) -> int:
        """Frames that the model sees; 0 for text only."""
        return 0 if self.vision is None else len(self.vision)


@dataclass(frozen=True)
class Draw:
    """One drawn sample: row `index` of source number `source`.

    `seed` (63 bits) is a hash of the run's seed and the draw's number. Loading takes all its
    randomness from it.
    """

    source: int
    index: int
    seed: int

    def __post_init__(self) -> None:
        expect("Draw", self, COUNT, "source", "index", "seed")


class Cost(NamedTuple):
    """The size of a sample: its frames (as `Sample.frames`) and its text tokens."""

    frames: int
    text: int


@dataclass(frozen=True)
class Limits:
    """The limits that a phase of training sets for its samples.

    Attributes:
        min_frames: fewest frames of a video, if it has that many. If frames are merged in clips,
            both bounds are rounded inwards to whole clips.
        max_frames: most frames of a video.
        image_size: pixels per side; None for the vision encoder's own.

    Raises:
        ValueError: a field breaks its rule.
    """

    min_frames: int = 1
    max_frames: int = 64
    image_size: int | None = None

    def __post_init__(self) -> None:
        if not (is_integer(self.min_frames) and self.min_frames >= 1):
            fail("Limits", "min_frames", "be an integer above 0", self.min_frames)
        if not (is_integer(self.max_frames) and self.max_frames >= self.min_frames):
            rule = f"be an integer of min_frames ({self.min_frames}) or more"
            fail("Limits", "max_frames", rule, self.max_frames)
        size = self.image_size
        if size is not None and not (is_integer(size) and size > 0):
            fail("Limits", "image_size", "be an integer above 0 or None", size)


class Source(Protocol):
    """Rows that samples are made of.

    Attributes:
        name: its name in error messages, mixtures and metrics.
    """

    name: str

    def __len__(self) -> int:
        """Number of drawable rows."""
        ...

    def cost(self, index: int, draw: Draw) -> Cost:
        """The cost of the sample that `load` gives for the same arguments, without decoding."""
        ...

    def load(self, index: int, draw: Draw) -> Sample:
        """The sample of a row; its randomness is a function of `draw.seed` alone."""
        ...

    def limits(self, limits: Limits) -> Source:
        """The same rows within other limits."""
        ...


def _is_pixels(x: object) -> bool:
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.ndim != 4:
        return False
    frames, channels, height, width = x.shape
    return bool(frames and channels == 3 and height == width and height)


def _is_features(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3 and x.numel() > 0


def _told(x: object) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
