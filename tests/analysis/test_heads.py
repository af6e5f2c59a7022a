"""Figures of heads by hand."""

from __future__ import annotations

import math

import pytest
import torch

from timeviper_fast.analysis.heads import (
    ProfileSums,
    category_scores,
    normalised,
    numbers,
    sink_share,
)


def profile_of(weights: torch.Tensor, window: int = 4):
    """Of heads given as whole matrices (heads, n, n)."""
    sums = ProfileSums(len(weights), window)
    for block in torch.arange(weights.shape[1]).split(5):
        sums.add(block, weights[:, block].double())
    return sums.profile


def test_heads_of_each_kind() -> None:
    n = 33
    uniform = torch.ones(n, n).tril()
    own = torch.eye(n)
    first = torch.zeros(n, n)
    first[:, 0] = 1
    found = profile_of(torch.stack([uniform, own, first, torch.zeros(n, n)]))
    assert found.kinds == ("global", "local", "sparse", "unmeasured")
    # neither near nor far: equal weights over the last 12 tokens, of which 4 are near
    assert profile_of(torch.ones(1, 97, 97).tril().triu(-11)).kinds == ("mixed",)
    assert found.rows.tolist() == [29, 29, 29, 0]
    near = sum(4 / (i + 1) for i in range(4, n)) / 29
    torch.testing.assert_close(found.locality[:3], torch.tensor([near, 1, 0]).double())
    torch.testing.assert_close(found.sparsity[:3], torch.tensor([0, 1, 1]).double())
    torch.testing.assert_close(found.reach[:3], torch.tensor([0.5, 0, 1]).double())
    assert found.to_dict()["reach"][3] is None
    assert found.to_dict()["kinds"][1] == "local"


def test_a_profile_does_not_depend_on_the_scale_of_a_row() -> None:
    weights = torch.rand(2, 20, 20).tril()
    torch.testing.assert_close(profile_of(weights).sparsity, profile_of(7 * weights).sparsity)


def test_sparsity_is_one_minus_the_share_of_the_largest_entropy() -> None:
    row = torch.tensor([[[0.5, 0.25, 0.25, 0.0]]]).double()
    sums = ProfileSums(1, 2)
    sums.add(torch.tensor([3]), row)
    assert float(sums.profile.sparsity) == pytest.approx(1 - 1.5 * math.log(2) / math.log(4))
    assert float(sums.profile.locality) == 0.25
    assert float(sums.profile.reach) == pytest.approx((0.5 * 3 + 0.25 * 2 + 0.25 * 1) / 3)


def test_a_sink_is_measured_behind_it() -> None:
    """Row 0 sees itself alone: it says nothing about a sink."""
    mass = torch.tensor([[1.0, 0.5, 0.5], [1.0, 0.9, 0.6]])
    found = sink_share(mass, torch.arange(3))
    assert found.rows == 2
    assert found.uniform == pytest.approx((1 / 2 + 1 / 3) / 2)
    torch.testing.assert_close(found.mass, torch.tensor([0.5, 0.75]).double())
    torch.testing.assert_close(found.ratio, torch.tensor([1.2, 1.8]).double())
    assert sink_share(mass, torch.arange(3), 3).to_dict() == {
        "mass": [None, None],
        "uniform": None,
        "rows": 0,
    }


def test_scores_count_rows_that_look_at_the_group() -> None:
    """Rows 0 and 1 are of group 0; row 1 alone has mass on group 1."""
    mass = torch.tensor([[1.0, 0.0], [0.4, 0.6], [0.1, 0.9]])
    scores = category_scores(mass, torch.tensor([0, 0, 1]), 3 - 1)
    torch.testing.assert_close(scores, torch.tensor([[0.7, 0.6], [0.1, 0.9]]).double())


def test_rows_of_zeros_stay() -> None:
    assert normalised(torch.tensor([[2.0, 6.0], [0.0, 0.0]])).tolist() == [[0.25, 0.75], [0, 0]]


def test_json_has_no_nan() -> None:
    assert numbers(torch.tensor([[1.0, math.nan]])) == [[1.0, None]]
