"""Draws follow the weights, give each row once per epoch, and continue from a saved state."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataset.common import Numbers
from timeviper_fast.dataset.mixture import Mixture
from timeviper_fast.errors import ArgumentError


def mixture(lengths: list[int], weights: list[float] | None = None, seed: int = 0) -> Mixture:
    sources = [Numbers(str(i), [1] * length) for i, length in enumerate(lengths)]
    return Mixture(sources, weights or [1.0] * len(lengths), seed)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 99))
def test_every_row_comes_once_per_epoch(lengths: list[int], seed: int) -> None:
    mixed = mixture(lengths, seed=seed)
    draws = [mixed.draw() for _ in range(60)]
    for source, length in enumerate(lengths):
        rows = [draw.index for draw in draws if draw.source == source]
        whole = len(rows) // length * length
        for start in range(0, whole, length):
            assert sorted(rows[start : start + length]) == list(range(length))
        rest = rows[whole:]
        assert len(set(rest)) == len(rest)
    assert len({draw.seed for draw in draws}) == 60


@given(st.integers(0, 40), st.integers(0, 9))
def test_a_mixture_is_continued_from_its_state(done: int, seed: int) -> None:
    whole, first, second = (mixture([5, 3], [2.0, 1.0], seed) for _ in range(3))
    expected = [whole.draw() for _ in range(done + 30)][done:]
    for _ in range(done):
        first.draw()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.draw() for _ in range(30)] == expected
    assert second.drawn == done + 30


def test_sources_come_by_weight_and_epochs_differ() -> None:
    mixed = mixture([10, 10, 10], [6.0, 3.0, 1.0])
    draws = [mixed.draw() for _ in range(3000)]
    counts = Counter(draw.source for draw in draws)
    # within four standard deviations of 1800, 900 and 300
    assert [
        abs(counts[i] - n) < 4 * (n * (1 - n / 3000)) ** 0.5 for i, n in enumerate((1800, 900, 300))
    ] == [True] * 3
    rows = [draw.index for draw in draws if draw.source == 0]
    assert len({tuple(rows[i : i + 10]) for i in range(0, 1000, 10)}) > 90


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], [], 0), "sources must hold at least one source"),
        (([Numbers("a", [1]), Numbers("a", [1])], [1, 1], 0), "sources must have different names"),
        (([Numbers("a", [])], [1], 0), "sources must have rows, got none in 'a'"),
        (
            ([Numbers("a", [1])], [0], 0),
            "weights must be a finite number above 0 for each of 1 sources",
        ),
        (([Numbers("a", [1])], [1, 1], 0), "weights must be a finite number above 0"),
        (([Numbers("a", [1])], [1], "x"), "seed must be an integer, got 'x'"),
    ],
)
def test_arguments_that_break_a_rule(arguments: Any, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=f"Mixture: {sentence}"):
        Mixture(*arguments)


def test_a_state_of_other_sources_is_refused() -> None:
    mixed = mixture([5, 3])
    with pytest.raises(ArgumentError, match=r"state must have the run's lengths .*begin a new run"):
        mixed.load_state_dict(mixture([5, 4]).state_dict())
    with pytest.raises(ArgumentError, match=r"state must have the run's seed \(0\), got 1"):
        mixed.load_state_dict(mixture([5, 3], seed=1).state_dict())
    with pytest.raises(ArgumentError, match="state must have the run's weights"):
        mixed.load_state_dict(mixture([5, 3], [1.0, 2.0]).state_dict())
