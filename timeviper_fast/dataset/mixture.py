"""Sources mixed by weight; each gives its rows in a new permutation per epoch.

Draw k is a function of the seed, the sources' lengths and k, so the number of draws is enough to
continue a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from timeviper_fast.dataset.randomness import hash63, permuted
from timeviper_fast.dataset.sample import Draw, Source
from timeviper_fast.errors import ArgumentError, fail, is_integer, is_number

__all__ = ["Mixture"]


class Mixture:
    """An endless sequence of draws.

    A hash of the seed and k chooses the source of draw k, by weight. In each epoch a source gives
    every row once, in another order.

    Args:
        sources: with different names, none of them empty.
        weights: one above 0 for each source; their sum does not matter.
        seed: seed of the run.

    Raises:
        ValueError: an argument breaks its rule.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], seed: int) -> None:
        if not sources:
            fail("Mixture", "sources", "hold at least one source", list(sources))
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            fail("Mixture", "sources", "have different names", names)
        if len(weights) != len(sources) or not all(is_number(w) and w > 0 for w in weights):
            rule = f"be a finite number above 0 for each of {len(sources)} sources"
            fail("Mixture", "weights", rule, list(weights))
        if not is_integer(seed):
            fail("Mixture", "seed", "be an integer", seed)
        self.sources, self.seed = tuple(sources), seed
        self._lengths = [len(source) for source in sources]
        for name, length in zip(names, self._lengths):
            if not length:
                raise ArgumentError("Mixture", "sources", "have rows", f"none in {name!r}")
        self._weights, self._bounds = list(weights), list(accumulate(weights))
        self._drawn, self._counts = 0, [0] * len(sources)

    @property
    def drawn(self) -> int:
        """Number of draws so far."""
        return self._drawn

    def draw(self) -> Draw:
        """The next draw."""
        number = hash63(self.seed, "source", self._drawn) / (1 << 63) * self._bounds[-1]
        last = len(self._bounds) - 1
        source = next((i for i, bound in enumerate(self._bounds) if number < bound), last)
        epoch, position = divmod(self._counts[source], self._lengths[source])
        name = self.sources[source].name
        index = permuted(position, self._lengths[source], self.seed, name, epoch)
        drawn = Draw(source, index, hash63(self.seed, "draw", self._drawn))
        self._drawn += 1
        self._counts[source] += 1
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """The mixture's position as JSON values, and the settings that must not change."""
        names = [source.name for source in self.sources]
        return {
            "seed": self.seed,
            "lengths": dict(zip(names, self._lengths)),
            "weights": dict(zip(names, self._weights)),
            "drawn": self._drawn,
            "counts": dict(zip(names, self._counts)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ArgumentError: the state has another seed, other sources or other weights.
        """
        own = self.state_dict()
        for part in ("seed", "lengths", "weights"):
            if state.get(part) != own[part]:
                rule = f"have the run's {part} ({own[part]})"
                fail("Mixture", "state", rule, state.get(part), "begin a new run instead")
        self._drawn = state["drawn"]
        self._counts = [state["counts"][source.name] for source in self.sources]
