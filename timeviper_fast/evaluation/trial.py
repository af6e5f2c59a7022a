"""One video of a needle test: which frame shows what, and what is asked about it."""

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
        task: what kind of question, or which needle.
        question, truth: its words, and the true answer; with options, their letter.
        needed: frames that show the answer, in order.
        depth: where the needle stands: 0 is the first frame, 1 the last. Of several needed frames
            it is that of the first to be read (the first card of a chain).
        hops: cards of a chain, else 0.
        options: texts behind the letters A, B, C ...; () for an open question.
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
        """What the answer is forced to begin with."""
        return _OPTION if self.options else ""

    def judge(self, answer: str) -> bool:
        """Whether a generated answer is right: with options its letter, else all of it, apart
        from case, spaces at its ends and a full stop."""
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
        frames: of the video.
        seed: decides which frames of the haystack it is made of.
        needles: what frames show, by number; the haystack knows what that means.
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
        tasks: what is asked in each video.
        facts: what it is made of, for JSON; a continued run must have the same.
        foot: a sentence for the foot of figures.
    """

    tasks: tuple[str, ...]
    facts: dict[str, Any]
    foot: str

    def trial(self, frames: int, seed: int, number: int, depths: Sequence[float]) -> Trial:
        """A video of `frames` frames with one question per task, at these depths.

        Args:
            frames: of the video, needles included.
            seed: of the run.
            number: of the video.
            depths: of each task's needle, all different.
        """

    def visual(self, trial: Trial, blind: bool = False) -> Tensor:
        """Its visual tokens (frames, n, d_model); `blind`: without the frames that are needed."""


def frame_at(depth: float, frames: int) -> int:
    """The frame that a needle at this depth replaces: int(depth * (frames - 1))."""
    # depths are quotients of small integers, and 0.3 * 10 must not become 2
    return int(depth * (frames - 1) + 1e-9)


def depth_of(number: int, depths: int) -> float:
    """The depth of that number among `depths` evenly spaced ones; a single one is the middle."""
    if not 0 <= number < depths:
        fail("depth_of", "number", f"lie in 0 .. {depths - 1}", number)
    return number / (depths - 1) if depths > 1 else 0.5
