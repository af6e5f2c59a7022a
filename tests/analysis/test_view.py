"""Figures of a layer by hand."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.analysis.groups import Groups
from timeviper_fast.analysis.heads import sink_share
from timeviper_fast.analysis.rows import row_sums
from timeviper_fast.analysis.view import LayerView, View
from timeviper_fast.layout import Segment, VisualSpan


def view_of(layer: int, groups: Groups) -> LayerView:
    """Two heads on four tokens, one word, one or two vision tokens, the rest words."""
    weights = torch.tensor([[2.0, 2.0, 4.0, 0.0], [-1.0, 1.0, 1.0, 1.0]])[:, None]
    absolute = weights.abs() @ groups.indicator()
    rows = torch.tensor([3])
    return LayerView(
        layer, "mamba", groups, torch.zeros(4, 3), None, rows, absolute.double(),
        sink_share(torch.ones(2, 1), rows), row_sums([], groups.indicator(), 2).profile,
        {0: weights[0]},
    )  # fmt: skip


GROUPS = Groups.of(Segment(4, VisualSpan(1, 2)))


def test_scores_are_shares_of_absolute_weights() -> None:
    """Head 0 has 6 of 8 on vision, head 1 has 2 of 4."""
    view = view_of(0, GROUPS)
    assert view.scores_by_head[:, 0, 1].tolist() == [0.75, 0.5]
    assert view.scores[0].tolist() == pytest.approx([0.375, 0.625, 0.0])
    told = view.to_dict()
    assert told["rows"] == [3]
    assert told["tokens"] == {"instruction": 2, "vision": 2, "answer": 0}
    assert told["maps"] == {"0": [[2.0, 2.0, 4.0, 0.0]]}


def test_layers_in_order_of_depth_and_what_they_keep() -> None:
    later = Groups.of(Segment(6, VisualSpan(1, 4))).keep(torch.tensor([0, 3]))
    view = View(
        GROUPS.names, (view_of(2, GROUPS), view_of(5, later)), {0: "no columns"}, True, 8, 5
    )
    assert view.by_depth("instruction", "vision") == (
        (2, "mamba", pytest.approx(0.625)),
        (5, "mamba", pytest.approx(0.625)),
    )
    assert view.kept().tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 1, 0]]
    assert view.depths == (0.25, 0.625)
    assert [layer["depth"] for layer in view.to_dict()["layers"]] == [0.25, 0.625]
    assert view.to_dict()["skipped"] == {"0": "no columns"}
    with pytest.raises(ValueError, match="name must be one of instruction, vision, answer"):
        view.by_depth("sound", "vision")
