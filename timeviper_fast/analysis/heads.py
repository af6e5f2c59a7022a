"""Figures of heads: how sparse, how local and how far they look, their sinks, scores of groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["HeadProfile", "ProfileSums", "SinkShare", "category_scores", "normalised", "sink_share"]

# Thresholds of ours: the sources name the kinds and show examples, but give no rule.
# Equal weights have a reach of 0.5: a head with half of that looks far.
_HALF, _SPARSE, _FAR = 0.5, 0.5, 0.25


@dataclass(frozen=True)
class HeadProfile:
    """How the heads of a layer spread their absolute weights, as means over measured rows.

    With p = |weights of row i| over their sum:

    Attributes:
        sparsity: (nheads,) float64, 1 - entropy(p) / log(i + 1): 0 for equal weights, 1 for a
            single column.
        locality: (nheads,) float64, the sum of p over the last `window` tokens, the row's own too.
        reach: (nheads,) float64, the sum of p_j (i - j) / i: 0 for the row's own token, 0.5 for
            equal weights, 1 for the first token.
        rows: (nheads,) int64, measured rows: those with i >= window whose weights are not all 0.
            A head without one has NaN.
        window: tokens that count as near.
    """

    sparsity: Tensor
    locality: Tensor
    reach: Tensor
    rows: Tensor
    window: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of each head: "local" if at least half of its weight is near, else "sparse" if its
        sparsity is at least 0.5, else "global" if its reach is at least 0.25, else "mixed";
        "unmeasured" without a row."""
        figures = (self.rows, self.locality, self.sparsity, self.reach)
        return tuple(_kind(*of_head) for of_head in zip(*(x.tolist() for x in figures)))

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers; NaN is None."""
        named = {name: numbers(getattr(self, name)) for name in ("sparsity", "locality", "reach")}
        return {**named, "rows": self.rows.tolist(), "window": self.window, "kinds": [*self.kinds]}


def _kind(rows: int, locality: float, sparsity: float, reach: float) -> str:
    if not rows:
        return "unmeasured"
    if locality >= _HALF:
        return "local"
    if sparsity >= _SPARSE:
        return "sparse"
    return "global" if reach >= _FAR else "mixed"


class ProfileSums:
    """Collects a profile from blocks of rows."""

    def __init__(self, heads: int, window: int) -> None:
        self.window = window
        self._sums = torch.zeros(3, heads, dtype=torch.float64)
        self._rows = torch.zeros(heads, dtype=torch.int64)

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """rows (b,) and their absolute weights (nheads, b, m) float64, which are not modified."""
        long = rows >= max(self.window, 1)
        rows, weights = rows[long], weights[:, long]
        total = weights.sum(-1)
        p = weights / total.masked_fill(total == 0, 1.0)[..., None]
        columns = torch.arange(weights.shape[-1], device=rows.device)
        distance = (rows[:, None] - columns).clamp_min(0)
        # columns behind the row have no weight
        near = (distance < self.window).to(p)
        sparsity = 1 - torch.special.entr(p).sum(-1) / torch.log(rows + 1.0)
        locality = torch.einsum("hbm,bm->hb", p, near)
        reach = torch.einsum("hbm,bm->hb", p, distance.to(p)) / rows
        measured = torch.stack([sparsity, locality, reach]).masked_fill(total == 0, 0.0)
        self._sums += measured.sum(-1).cpu()
        self._rows += (total != 0).sum(-1).cpu()

    @property
    def profile(self) -> HeadProfile:
        sparsity, locality, reach = self._sums / self._rows
        return HeadProfile(sparsity, locality, reach, self._rows.clone(), self.window)


@dataclass(frozen=True)
class SinkShare:
    """Mass on the first tokens, as a mean over rows that stand behind them.

    Attributes:
        mass: (nheads,) float64.
        uniform: what rows with equal weights would have: the mean of sinks / (i + 1).
        rows: how many rows; without one the figures are NaN.
    """

    mass: Tensor
    uniform: float
    rows: int

    @property
    def ratio(self) -> Tensor:
        """(nheads,) mass over the uniform share; above 1 the first tokens are a sink."""
        return self.mass / self.uniform

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers; NaN is None."""
        uniform = self.uniform if self.rows else None
        return {"mass": numbers(self.mass), "uniform": uniform, "rows": self.rows}


def sink_share(mass: Tensor, rows: Tensor, sinks: int = 1) -> SinkShare:
    """The share of the first `sinks` tokens.

    Args:
        mass: (nheads, r), each row's mass on them; rows with weights of another sum than 1 are
            normalised before.
        rows: (r,) int64, which token each row is. Rows below `sinks` are left out: they see nothing
            else, or see themselves as a sink.
        sinks: 1 or more.
    """
    behind = rows >= sinks
    share = sinks / (rows[behind] + 1.0).double()
    return SinkShare(mass[:, behind].double().mean(-1), float(share.mean()), int(behind.sum()))


def normalised(sums: Tensor) -> Tensor:
    """Rows of absolute group sums (..., r, groups) over their total; rows of zeros stay."""
    total = sums.sum(-1, keepdim=True)
    return sums / total.masked_fill(total == 0, 1.0)


def category_scores(mass: Tensor, group: Tensor, groups: int) -> Tensor:
    """How much the rows of each group look at each group.

        score(a, b) = sum of mass[i, b] over rows i of group a / rows of a with mass on b

    Args:
        mass: (..., r, groups), not negative.
        group: (r,) int64, the group of each row.
        groups: how many there are.

    Returns:
        (..., groups, groups) float64, [a, b]; 0 where no row of a has mass on b.

    Source: the analysis of TimeViper's released code, which averages the heads before.
    """
    source = torch.nn.functional.one_hot(group, groups).double()
    total = torch.einsum("ra,...rb->...ab", source, mass.double())
    count = torch.einsum("ra,...rb->...ab", source, (mass != 0).double())
    return total / count.clamp_min(1.0)


def numbers(values: Tensor) -> list[Any]:
    """A tensor as nested lists in which NaN is None, as JSON can hold it."""
    if values.ndim > 1:
        return [numbers(part) for part in values]
    return [None if x != x else x for x in values.tolist()]
