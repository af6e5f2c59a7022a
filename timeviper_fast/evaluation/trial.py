"""One video of a needle test: the frames with needles, and the questions about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from timeviper_fast.errors import fail

__all__ = ["Haystack", "Probe", "Trial", "depth_of", "frame_at"]

_OPTION = "Best option: ("


@dataclass(frozen=True)
class Probe:
    """One question about a needle.

    Attributes:
        task: the kind of question, or the needle's name.
        question: its words.
        truth: the true answer; with options, its letter.
        needed: frames that show the answer, in order.
        depth: place of the needle; 0 is the first frame, 1 the last. With several needed frames it
            is the place of the one to read first (the first card of a chain).
        hops: number of cards of a chain; 0 for other tasks.
        options: choices, labelled A, B, C, ...; () for an open question.
    """

    task: str
    question: str
    truth: str
    needed: tuple[int, ...]
    depth: float
    hops: int = 0
    options: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The question with its options."""
        letters = "".join(f"\n({chr(65 + i)}) {text}" for i, text in enumerate(self.options))
        return self.question + letters

    @property
    def answer_prefix(self) -> str:
        """The text that the answer is forced to begin with."""
        return _OPTION if self.options else ""

    def judge(self, answer: str) -> bool:
        """Whether a generated answer is right. With options its letter counts; otherwise all of it
        must match, apart from case, spaces at both ends and a full stop."""
        if self.options:
            letter = re.match(r"\W*([A-Za-z])\b", answer)
            return letter is not None and letter[1].upper() == self.truth
        return _bare(answer) == _bare(self.truth)


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").casefold()


@dataclass(frozen=True)
class Trial:
    """A video and its questions.

    Attributes:
        frames: number of frames.
        seed: chooses the frames of the haystack.
        needles: {frame number: needle}, in the haystack's own representation.
        probes: the questions; no two need the same frame.
    """

    frames: int
    seed: int
    needles: Mapping[int, Any]
    probes: tuple[Probe, ...]

    @property
    def needed(self) -> set[int]:
        """The frames that any question needs."""
        return {frame for probe in self.probes for frame in probe.needed}


class Haystack(Protocol):
    """Where videos and needles come from.

    Attributes:
        tasks: the questions of each video.
        facts: a description for JSON; a continued run must have the same.
        foot: a sentence about it, shown below figures.
    """

    tasks: tuple[str, ...]
    facts: dict[str, Any]
    foot: str

    def trial(self, frames: int, seed: int, number: int, depths: Sequence[float]) -> Trial:
        """A video of `frames` frames with one question per task, at these depths.

        Args:
            frames: number of frames, needles included.
            seed: seed of the run.
            number: number of the video.
            depths: depth of each task's needle, all different.
        """

    def visual(self, trial: Trial, blind: bool = False) -> Tensor:
        """The video's visual tokens (frames, n, d_model); `blind`: needed frames are plain."""


def frame_at(depth: float, frames: int) -> int:
    """The frame that a needle at this depth replaces: int(depth * (frames - 1))."""
    # Add 1e-9 before truncating: 3 / 11 * 99 is 26.999999999999996 in float64.
    return int(depth * (frames - 1) + 1e-9)


def depth_of(number: int, depths: int) -> float:
    """Depth `number` of `depths` evenly spaced ones; with a single one it is the middle."""
    if not 0 <= number < depths:
        fail("depth_of", "number", f"lie in 0 .. {depths - 1}", number)
    return number / (depths - 1) if depths > 1 else 0.5
