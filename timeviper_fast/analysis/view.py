"""The figures of one layer and of all layers, as tensors and as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from timeviper_fast.analysis.groups import Groups
from timeviper_fast.analysis.heads import (
    HeadProfile,
    SinkShare,
    category_scores,
    normalised,
    numbers,
)

__all__ = ["LayerView", "View"]


@dataclass(frozen=True)
class LayerView:
    """What one layer looks at. All tensors are on the CPU.

    The layer has m input tokens; its n rows are the last n of them (all m, except in layers that a
    session has read before the question).

    Attributes:
        layer: its number in the pattern.
        kind: "attention" or "mamba".
        groups: of the m tokens.
        mean_mass: (n, groups) float32, each row's mass on each group, averaged over the heads: of
            attention a share, of Mamba-2 the signed sum of M.
        mass: (nheads, n, groups) float32, the same of each head; None unless asked for.
        chosen: (r,) int64, the rows, as numbers among the m tokens, for the figures below.
        absolute: (nheads, r, groups) float64, sums of absolute weights.
        sink: mass on the first tokens: of attention in all n rows, of Mamba-2 in the chosen rows,
            in absolute weights that sum to 1.
        profile: sparsity, locality and reach of the heads in the chosen rows.
        maps: by head, the chosen rows' weights (r, m) float32, signed; of wanted heads alone.
    """

    layer: int
    kind: Literal["attention", "mamba"]
    groups: Groups
    mean_mass: Tensor
    mass: Tensor | None
    chosen: Tensor
    absolute: Tensor
    sink: SinkShare
    profile: HeadProfile
    maps: Mapping[int, Tensor]

    @property
    def shares(self) -> Tensor:
        """(groups,) float64: the mean over heads and chosen rows of absolute weights that sum to 1
        in a row; NaN without a row."""
        return normalised(self.absolute).mean((0, 1))

    @property
    def scores(self) -> Tensor:
        """(groups, groups) float64: how much chosen rows of group a look at group b, [a, b], in
        absolute weights that sum to 1 in a row, averaged over the heads."""
        return self._scores(normalised(self.absolute).mean(0))

    @property
    def scores_by_head(self) -> Tensor:
        """(nheads, groups, groups) float64, `scores` of each head."""
        return self._scores(normalised(self.absolute))

    def _scores(self, mass: Tensor) -> Tensor:
        return category_scores(mass, self.groups.number[self.chosen], len(self.groups.names))

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, without the figures that have one entry for each of the n rows."""
        names = self.groups.names
        return {
            "layer": self.layer,
            "kind": self.kind,
            "tokens": {name: self.groups.count(name) for name in names},
            "rows": self.groups.position[self.chosen].tolist(),
            "shares": numbers(self.shares),
            "scores": numbers(self.scores),
            "scores_by_head": numbers(self.scores_by_head),
            "sink": self.sink.to_dict(),
            "heads": self.profile.to_dict(),
            "maps": {str(head): numbers(rows) for head, rows in self.maps.items()},
        }


@dataclass(frozen=True)
class View:
    """What the layers look at.

    Attributes:
        names: of the groups.
        layers: of every layer that has rows and columns to show, in order; MLPs have none.
        skipped: by number, why a layer is not shown.
        with_dt: whether the weights of Mamba-2 layers hold dt.
        depth: layers of the model, MLPs too.
        vision_tokens: of the video, before any stage.
    """

    names: tuple[str, ...]
    layers: tuple[LayerView, ...]
    skipped: Mapping[int, str]
    with_dt: bool
    depth: int
    vision_tokens: int

    @property
    def depths(self) -> tuple[float, ...]:
        """Of each shown layer, its number over the layers of the model. Models of different
        lengths, such as a hybrid and a Qwen2, are compared at equal depths."""
        return tuple(view.layer / self.depth for view in self.layers)

    def by_depth(self, source: str, target: str) -> tuple[tuple[int, str, float], ...]:
        """(layer, kind, score) of each layer: how much rows of `source` look at `target`. The
        relative depths of the layers are `depths`.

        Raises:
            ValueError: there is no such group.
        """
        found = []
        for view in self.layers:
            score = view.scores[view.groups.place(source), view.groups.place(target)]
            found.append((view.layer, view.kind, float(score)))
        return tuple(found)

    def kept(self) -> Tensor:
        """(layers, vision tokens) bool: which vision tokens of the video enter each shown layer."""
        kept = torch.zeros(len(self.layers), self.vision_tokens, dtype=torch.bool)
        for row, view in zip(kept, self.layers):
            row[view.groups.vision[view.groups.vision >= 0]] = True
        return kept

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers for JSON; `scores` are [source][target] in the order of `groups`."""
        layers = [{**view.to_dict(), "depth": at} for view, at in zip(self.layers, self.depths)]
        return {
            "groups": [*self.names],
            "with_dt": self.with_dt,
            "layers": layers,
            "skipped": {str(layer): why for layer, why in self.skipped.items()},
        }
