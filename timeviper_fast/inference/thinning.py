"""Which vision tokens a uniform stage keeps, decided while they arrive one after the other.

The rule needs the number of all tokens. If it is announced, every token's fate is known at once. In
a stream it is not; but where the stage keeps (p - 1) of p tokens, all but every p-th stay, whatever
the number, except within the last group, so that only a group has to be held back. Numbers for
which that is not exact are refused at the end, when they are compared with the rule.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import fail
from timeviper_fast.inference.rows import Grid, Rows
from timeviper_fast.model.cache import AttentionState
from timeviper_fast.model.transv import StageRecord, TransV

__all__ = ["Announced", "Even", "Rhythm", "Thinning", "UniformStage", "rhythm_of", "shares"]


class Thinning(Protocol):
    """The fate of the tokens that arrive at a uniform stage, numbered from 0.

    Attributes:
        exact: whether these are the stage's own choices; where the number of tokens does not fit
            them, that is an error.
    """

    exact: bool

    def settled(self, arrived: int) -> int:
        """How many tokens have a fate when so many have arrived."""
        ...

    def stays(self, first: int, stop: int) -> Tensor:
        """(stop - first,) bool on the CPU: whether each of these tokens stays."""
        ...


class Announced:
    """The rule itself: of `total` tokens those numbered `kept` (n,) int64 stay.

    With the rhythm of its stage it lets tokens through when a stream would that does not know their
    number. Blocks of rows then fill at the same time, and the two agree to the bit.
    """

    exact = True

    def __init__(self, kept: Tensor, total: int, rhythm: Thinning | None = None) -> None:
        self._stays = torch.zeros(total, dtype=torch.bool)
        self._stays[kept] = True
        self._rhythm = rhythm

    def settled(self, arrived: int) -> int:
        return arrived if self._rhythm is None else self._rhythm.settled(arrived)

    def stays(self, first: int, stop: int) -> Tensor:
        return self._stays[first:stop]


class Rhythm:
    """All but every `period`-th token stay; the last group waits for the end."""

    exact = True

    def __init__(self, period: int) -> None:
        self._period = period

    def settled(self, arrived: int) -> int:
        return max(arrived - 1, 0) // self._period * self._period

    def stays(self, first: int, stop: int) -> Tensor:
        return torch.arange(first, stop) % self._period != self._period - 1


class Even:
    """Token t stays if floor((t + 1) share) > floor(t share): any share, but not the exact rule."""

    def __init__(self, share: Fraction) -> None:
        self._share, self.exact = share, share == 1

    def settled(self, arrived: int) -> int:
        return arrived

    def stays(self, first: int, stop: int) -> Tensor:
        over, under = self._share.as_integer_ratio()
        tokens = torch.arange(first, stop + 1) * over // under
        return tokens[1:] > tokens[:-1]


def shares(stages: Sequence[CompressionStage]) -> list[Fraction]:
    """The share of the tokens arriving at each stage that it keeps; `keep` is of the original ones,
    in the decimals in which it is written."""
    keeps = [Fraction(1), *(Fraction(repr(float(stage.keep))) for stage in stages)]
    return [now / before for before, now in pairwise(keeps)]


def rhythm_of(share: Fraction) -> Thinning | None:
    """The rhythm of a share (p - 1) / p, or of 1; None for other shares."""
    if share == 1:
        return Even(share)
    period = 1 / (1 - share)
    if period.denominator != 1 or period < 2:
        return None
    return Rhythm(int(period))


class UniformStage:
    """One uniform stage of a prefix: thins what arrives, and keeps what text will read of the rest.

    Attributes:
        arrived, settled: vision tokens that have come, and those of them with a fate.
        held: rows that wait for a fate, with the text between them.
        kept: (n,) int64 on the CPU, the numbers of the video's tokens that stayed, in parts.
        dropped: keys and values of the tokens that did not; None without transfer.
        dropped_numbers: the numbers of those, in parts.
    """

    def __init__(
        self, module: TransV, thinning: Thinning, size: int | None, dropped: AttentionState | None
    ) -> None:
        self.module, self.thinning, self.dropped = module, thinning, dropped
        self.arrived = self.settled = 0
        self.held: Rows | None = None
        self.kept: list[Tensor] = []
        self.dropped_numbers: list[Tensor] = []
        self.grid = Grid(size)

    @property
    def exact(self) -> bool:
        """Whether it keeps what the rule keeps."""
        return self.thinning.exact

    def push(self, rows: Rows) -> Rows:
        """Take the next rows; return those that go on, in order."""
        self.arrived += rows.vision
        if self.held is not None:
            rows = Rows.join([self.held, rows])
        return self._let_through(rows, self.thinning.settled(self.arrived))

    def end(self, came: Tensor, vision_tokens: int, exact: bool) -> Iterator[Rows]:
        """The rows that were held back, when no more come.

        Args:
            came: (arrived,) int64, numbers of the video's tokens that came.
            vision_tokens: those that were there originally.
            exact: whether the fates must be those of the rule.

        Raises:
            ValueError: the fates were decided without the number of tokens, and do not fit it.
        """
        if exact and self.thinning.exact:
            self.thinning = self._rule(came, vision_tokens)
        if self.held is not None:
            rows, self.held = self.held, None
            yield self._let_through(rows, self.arrived)
        for block in self.grid.rest():
            self._keep(block)

    def _rule(self, came: Tensor, vision_tokens: int) -> Announced:
        """The stage's rule, if what was decided without it agrees."""
        stage = self.module.stage
        keep = stage.kept_count(vision_tokens)
        kept = self.module.spaced(self.arrived, keep, torch.device("cpu"))
        decided = self.kept_numbers
        if not torch.equal(came[kept[kept < self.settled]], decided):
            rule = f"be a number of vision tokens of which keep={stage.keep:g} is exact online"
            remedy = "announce the number of frames, or allow even=True"
            fail("stream", "frames", rule, vision_tokens, remedy)
        return Announced(kept, self.arrived)

    @property
    def kept_numbers(self) -> Tensor:
        """(n,) int64, the video's tokens that stayed so far."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *self.kept])

    def _let_through(self, rows: Rows, settled: int) -> Rows:
        fresh = settled - self.settled
        vision = rows.source >= 0
        cut = len(rows)
        if fresh < int(vision.sum()):
            # the first row without a fate, and all behind it, wait
            cut = int(vision.nonzero()[fresh, 0])
        self.held = rows[cut:].copy() if cut < len(rows) else None
        rows, vision = rows[:cut], vision[:cut]
        fate = self.thinning.stays(self.settled, settled)
        self.kept.append(rows.source[vision][fate])
        self.settled = settled
        if bool(fate.all()):
            return rows
        stays = torch.ones(cut, dtype=torch.bool)
        stays[vision] = fate
        if self.dropped is not None:
            for block in self.grid.push(rows.where(~stays)):
                self._keep(block)
        return rows.where(stays)

    def _keep(self, block: Rows) -> None:
        assert self.dropped is not None
        self.dropped.append(*self.module.keys_values(block.hidden))
        self.dropped_numbers.append(block.source)

    def forget(self, gone: Tensor) -> None:
        """Forget the video's tokens of these numbers, (n,) int64, kept and dropped ones."""
        kept = self.kept_numbers
        self.kept = [kept[~torch.isin(kept, gone)]]
        if self.dropped is not None:
            numbers = torch.cat([kept[:0], *self.dropped_numbers])
            stays = ~torch.isin(numbers, gone)
            self.dropped.select(stays)
            self.dropped_numbers = [numbers[stays]]

    def record(self, came: Tensor, batch: int, device: torch.device) -> StageRecord:
        """What it did with the video's tokens `came` (n,) int64, without held ones."""
        kept = self.kept_numbers
        places = torch.searchsorted(came, kept).to(device).expand(batch, -1)
        return StageRecord(self.module.stage.layer, len(came), len(kept), places, None)

    def fork(self) -> UniformStage:
        """One that goes on apart; both share what was dropped so far."""
        fork = copy.copy(self)
        fork.kept, fork.grid = [*self.kept], self.grid.fork()
        fork.dropped_numbers = [*self.dropped_numbers]
        if self.dropped is not None:
            fork.dropped = self.dropped.share()
        return fork
