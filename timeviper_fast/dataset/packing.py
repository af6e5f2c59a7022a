"""Packs of samples that fill a number of tokens: first fit over a window of open packs.

The trainer defines the count: the tokens that reach a layer, on average over the layers. So a pack
holds more frames if the compression stages drop more tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from timeviper_fast.dataset.mixture import Mixture
from timeviper_fast.dataset.sample import Cost, Draw
from timeviper_fast.errors import DataError, fail, is_integer

__all__ = ["Pack", "Packer"]


@dataclass(frozen=True)
class Pack:
    """Drawn samples that are trained together.

    Attributes:
        draws: in the order in which they were drawn.
        tokens: the sum of the samples' tokens, as the packer counts them.
        state: the packer's state after this pack, as JSON values; a packer that loads it gives the
            same packs as follow this one. None if no run continues from this pack.
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
    """An endless sequence of packs of a mixture's draws.

    Each drawn sample goes into the first open pack with room for it. If there is none, a new pack
    is opened; if more than `window` are then open, the oldest is returned. A full pack is returned
    at once. A sample larger than `tokens` is a pack of its own.

    Args:
        mixture: gives the draws, and the sources that know their costs.
        tokens: most tokens of a pack.
        window: most packs open at a time. A larger window fills packs better, but samples wait
            longer.
        count: function from a sample's cost to its tokens.
        on_error: "raise" or "skip", for a sample without a cost (a faulty row).

    Attributes:
        skipped: number of skipped samples so far.
        notes: the reasons for the last of them.

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
                # if every row is faulty, no pack can ever be filled
                if self._on_error == "raise" or len(failed) == self._rows:
                    raise
                self.skipped += 1
                self.notes = [*self.notes, str(error)][-20:]
                continue
            full = self._place(draw, tokens)
            if full is not None:
                return full.pack(self.state_dict())

    def _place(self, draw: Draw, tokens: int) -> _Bin | None:
        """Put a sample into a pack; return the pack that is closed by it, or None."""
        if tokens >= self.tokens:
            return _Bin([(draw, tokens)])
        for place, fitting in enumerate(self._open):
            if fitting.tokens + tokens <= self.tokens:
                fitting.add(draw, tokens)
                return self._open.pop(place) if fitting.tokens == self.tokens else None
        self._open.append(_Bin([(draw, tokens)]))
        return self._open.pop(0) if len(self._open) > self.window else None

    def state_dict(self) -> dict[str, Any]:
        """The packer's state as JSON values: the mixture's, and the samples of the open packs."""
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
            ArgumentError: the state belongs to another run.
        """
        self.mixture.load_state_dict(state["mixture"])
        self._open = [
            _Bin((Draw(*draw), tokens) for *draw, tokens in items) for items in state["open"]
        ]
        self.skipped = state["skipped"]
