"""Packs of samples that fill a number of tokens: first fit over a window of open packs.

What counts is given by the trainer: the tokens that reach the layers, on average, after the
compression stages. So a pack of long videos holds more frames where more tokens are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from timeviper_fast.dataset.mixture import Mixture
from timeviper_fast.dataset.sample import Cost, Draw
from timeviper_fast.errors import DataError, fail, is_integer

__all__ = ["Pack", "Packer", "first_fit"]


@dataclass(frozen=True)
class Pack:
    """Drawn samples that are trained together.

    Attributes:
        draws: in the order in which they were drawn.
        tokens: their sum, as the packer counts.
        state: of the packer after this pack, as JSON; a run that is continued from it makes the
            same packs that would have come next. None in a pack that no run continues from.
    """

    draws: tuple[Draw, ...]
    tokens: int
    state: dict[str, Any] | None = None


class _Bin:
    """A pack that is being filled."""

    def __init__(self, items: Iterable[tuple[Draw, int]] = ()) -> None:
        self.items = list(items)
        self.tokens = sum(tokens for _, tokens in self.items)

    def add(self, draw: Draw, tokens: int) -> None:
        self.items.append((draw, tokens))
        self.tokens += tokens

    def pack(self, state: dict[str, Any] | None = None) -> Pack:
        return Pack(tuple(draw for draw, _ in self.items), self.tokens, state)


class Packer:
    """Packs of a mixture's draws, without end.

    Each drawn sample goes into the first open pack with room for it. If there is none, a new pack
    is opened, and if more than `window` are open, the oldest one is given out. A full pack is given
    out at once, and so is a sample larger than `tokens`, which is a pack of its own.

    Args:
        mixture: gives the draws, and the sources that tell their cost.
        tokens: most tokens of a pack.
        window: packs that are open at a time; more of them fill better, and a sample waits longer.
        count: tokens of a sample from its cost.
        on_error: "raise" where a sample's cost cannot be told (a faulty row), or "skip" it.

    Attributes:
        skipped: samples that were left out so far, with `on_error="skip"`.
        notes: why, for the last of them.

    Raises:
        ValueError: an argument breaks its rule.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokens: int,
        window: int,
        count: Callable[[Cost], int],
        *,
        on_error: str = "raise",
    ) -> None:
        for name, value in (("tokens", tokens), ("window", window)):
            if not (is_integer(value) and value >= 1):
                fail("Packer", name, "be an integer above 0", value)
        if on_error not in ("raise", "skip"):
            fail("Packer", "on_error", "be one of raise, skip", on_error)
        self.mixture, self.tokens, self.window = mixture, tokens, window
        self.skipped = 0
        self.notes: list[str] = []
        self._count, self._on_error = count, on_error
        self._rows = sum(map(len, mixture.sources))
        self._open: list[_Bin] = []

    def __iter__(self) -> Iterator[Pack]:
        while True:
            yield self.next()

    def next(self) -> Pack:
        """The next pack."""
        failed: set[tuple[int, int]] = set()
        while True:
            draw = self.mixture.draw()
            source = self.mixture.sources[draw.source]
            try:
                tokens = self._count(source.cost(draw.index, draw))
            except DataError as error:
                failed.add((draw.source, draw.index))
                # where every row is faulty, no pack can ever come
                if self._on_error == "raise" or len(failed) == self._rows:
                    raise
                self.skipped += 1
                self.notes = [*self.notes, str(error)][-20:]
                continue
            full = self._place(draw, tokens)
            if full is not None:
                return full.pack(self.state_dict())

    def _place(self, draw: Draw, tokens: int) -> _Bin | None:
        """Put a sample into a pack; a pack that is given out, if there is one."""
        if tokens >= self.tokens:
            return _Bin([(draw, tokens)])
        for place, fitting in enumerate(self._open):
            if fitting.tokens + tokens <= self.tokens:
                fitting.add(draw, tokens)
                return self._open.pop(place) if fitting.tokens == self.tokens else None
        self._open.append(_Bin([(draw, tokens)]))
        return self._open.pop(0) if len(self._open) > self.window else None

    def state_dict(self) -> dict[str, Any]:
        """Where the packer stands, as JSON: the mixture, and the samples of packs not given out."""
        return {
            "mixture": self.mixture.state_dict(),
            "open": [
                [[draw.source, draw.index, draw.seed, tokens] for draw, tokens in each.items]
                for each in self._open
            ],
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a pack's state.

        Raises:
            ArgumentError: it is of another run.
        """
        self.mixture.load_state_dict(state["mixture"])
        self._open = [
            _Bin((Draw(*draw), tokens) for *draw, tokens in items) for items in state["open"]
        ]
        self.skipped = state["skipped"]


def first_fit(
    draws: Iterable[tuple[Draw, Cost]], tokens: int, count: Callable[[Cost], int]
) -> list[Pack]:
    """Packs of given draws, all of them, as an evaluation wants them; larger ones are alone.

    Args:
        draws: with their costs.
        tokens: most tokens of a pack.
        count: tokens of a sample from its cost.
    """
    bins: list[_Bin] = []
    for draw, cost in draws:
        need = count(cost)
        fitting = next((b for b in bins if b.tokens + need <= tokens), None)
        if fitting is None:
            bins.append(_Bin([(draw, need)]))
        else:
            fitting.add(draw, need)
    return [each.pack() for each in bins]
