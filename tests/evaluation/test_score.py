"""Intervals match tabulated values and the definition; scores are summed by key."""

from __future__ import annotations

import math

import pytest

from timeviper_fast.evaluation.score import Score, tally


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # 39 of 40 and 149 of 160 as the study tabulates them; 1,000 of 1,000 has the bound 0.9962
    [(39, 40, 0.871, 0.996), (149, 160, 0.881, 0.961), (1000, 1000, 0.9962, 1.0), (0, 4, 0, 0.49)],
)
def test_wilsons_interval(right, n, low, high):
    assert Score(right, n).interval == pytest.approx((low, high), abs=6e-4)


def test_the_interval_holds_the_shares_that_lie_within_z_deviations():
    """The bounds p solve |share - p| = z sqrt(p (1 - p) / n)."""
    for right, n in ((3, 11), (1, 40), (39, 40)):
        score = Score(right, n)
        for p in score.interval:
            deviation = math.sqrt(p * (1 - p) / n)
            assert abs(score.share - p) == pytest.approx(1.959964 * deviation, rel=1e-6)


def test_nothing_was_asked():
    assert math.isnan(Score(0, 0).share)
    assert Score(0, 0).interval == (0, 1)
    assert str(Score(0, 0)) == "-"


def test_sums_by_key():
    rows = [("a", 1), ("b", 0), ("a", 0)]
    sums = tally(rows, lambda row: row[0], lambda row: Score(row[1], 1))
    assert sums == {"a": Score(1, 2), "b": Score(0, 1)}
    assert str(sums["a"]) == "50.0 % [9.5, 90.5], 1/2"
