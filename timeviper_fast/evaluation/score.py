"""How many answers are right, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Score", "tally"]

_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_Row = TypeVar("_Row")
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Score:
    """`right` of `n`.

    Attributes:
        right, n: counts; n may be 0.
    """

    right: int
    n: int

    @property
    def share(self) -> float:
        """right / n; NaN for n = 0."""
        return self.right / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share; (0, 1) for n = 0."""
        if not self.n:
            return 0.0, 1.0
        spread = _Z * _Z / self.n
        middle = (self.share + spread / 2) / (1 + spread)
        half = _Z / (1 + spread) * math.sqrt((self.share * (1 - self.share) + spread / 4) / self.n)
        # the exact bound is 0 or 1 here; the formula misses it by rounding
        low = 0.0 if self.right == 0 else middle - half
        high = 1.0 if self.right == self.n else middle + half
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """Counts, share (None for n = 0) and interval, for JSON."""
        share = self.share if self.n else None
        return {"right": self.right, "n": self.n, "share": share, "interval": self.interval}

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.n + other.n)

    def __str__(self) -> str:
        """As "97.5 % [87.1, 99.6], 39/40"."""
        if not self.n:
            return "-"
        low, high = self.interval
        return (
            f"{100 * self.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}], {self.right}/{self.n}"
        )


def tally(
    rows: Iterable[_Row], key: Callable[[_Row], _Key], score: Callable[[_Row], Score]
) -> dict[_Key, Score]:
    """The sums of the rows' scores, for each key, in the order in which keys first appear."""
    sums: dict[_Key, Score] = {}
    for row in rows:
        sums[key(row)] = sums.get(key(row), Score(0, 0)) + score(row)
    return sums
