"""The seeded world as a source of training samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy

import numpy as np

from timeviper_fast.dataset.randomness import hash63
from timeviper_fast.dataset.sample import Cost, Draw, Limits, Sample
from timeviper_fast.errors import fail
from timeviper_fast.synthetic.lessons import to_pixels
from timeviper_fast.synthetic.pen import SIDE
from timeviper_fast.synthetic.pool import FramePool
from timeviper_fast.synthetic.questions import DEFAULT_TASKS, Puzzle, draw_puzzle
from timeviper_fast.synthetic.world import World
from timeviper_fast.text.messages import Message

__all__ = ["SyntheticSource"]

TextCount = Callable[[Sequence[Message], bool, str, str | None], int]


class SyntheticSource:
    """Videos of the seeded world with questions; a `Source`.

    Each draw is a new video, a function of the draw's seed; the row number has no effect.

    Args:
        frames: a pool, for samples with features, or a world, for samples with pixels.
        count_text: counts text tokens, such as `TextCounter(tokenizer, template)`.
        rows: number of draws that count as an epoch.
        tasks, turns, absent, held_out: see `draw_puzzle`.
        limits: fewest and most frames of a video; lengths are log-uniform between them.
        name: its name in error messages, mixtures and metrics.
    """

    def __init__(
        self,
        frames: FramePool | World,
        count_text: TextCount,
        *,
        rows: int = 1_000_000,
        tasks: Sequence[str] = DEFAULT_TASKS,
        turns: int = 1,
        absent: float = 0.1,
        held_out: bool = False,
        limits: Limits | None = None,
        name: str = "synthetic",
    ) -> None:
        self.name, self.rows, self.turns = name, rows, turns
        self.tasks, self.absent, self.held_out = tuple(tasks), absent, held_out
        self._frames, self._count_text = frames, count_text
        self._limits = Limits()
        self._set(limits or Limits())

    def __len__(self) -> int:
        return self.rows

    def limits(self, limits: Limits) -> SyntheticSource:
        """The same videos within other limits."""
        other = copy(self)
        other._set(limits)
        return other

    def _set(self, limits: Limits) -> None:
        if limits.image_size not in (None, SIDE):
            fail("SyntheticSource", "limits.image_size", f"be None or {SIDE}", limits.image_size)
        if isinstance(self._frames, FramePool) and limits.max_frames > self._frames.plain:
            rule = f"be at most the pool's {self._frames.plain} plain frames"
            fail("SyntheticSource", "limits.max_frames", rule, limits.max_frames)
        self._limits = limits

    def puzzle(self, draw: Draw) -> Puzzle:
        """The scene and the questions of a draw."""
        low, high = self._limits.min_frames, self._limits.max_frames
        share = hash63(draw.seed, "frames") / 2.0**63
        # log-uniform over [low, high + 1), rounded down
        frames = int(low * math.exp(share * math.log((high + 1) / low)))
        return draw_puzzle(
            hash63(draw.seed, "puzzle"),
            min(frames, high),
            self.tasks,
            turns=self.turns,
            absent=self.absent,
            held_out=self.held_out,
        )

    def cost(self, index: int, draw: Draw) -> Cost:
        """Frames and text tokens of a draw, without rendering."""
        puzzle = self.puzzle(draw)
        return Cost(puzzle.frames, self._count_text(_messages(puzzle), True, "", None))

    def load(self, index: int, draw: Draw) -> Sample:
        """The video and its questions; `needed` belongs to the last question."""
        puzzle = self.puzzle(draw)
        seed, frames = hash63(draw.seed, "pictures"), self._frames
        pixels = features = None
        if isinstance(frames, FramePool):
            features = frames.draw(puzzle.frames, puzzle.needles, seed)
        else:
            # consecutive frames of the world, so that a moving background moves
            first = seed % (1 << 40)
            numbers = np.arange(first, first + puzzle.frames)
            shown = [puzzle.needles.get(i) for i in range(puzzle.frames)]
            pixels = to_pixels(frames.render(numbers, shown))
        return Sample(
            _messages(puzzle),
            pixels,
            features,
            needed=puzzle.questions[-1].needed,
            seconds=tuple(map(float, range(puzzle.frames))),
            name=f"{self.name}:{index}",
        )


def _messages(puzzle: Puzzle) -> tuple[Message, ...]:
    return tuple(
        {"role": role, "content": text}
        for question in puzzle.questions
        for role, text in (("user", question.text), ("assistant", question.answer))
    )
