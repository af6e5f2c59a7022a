"""Hashes never change, and permutations are bijections."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from timeviper_fast.dataset.randomness import hash63, permuted


def test_hashes_stay_what_they_are() -> None:
    """Another value would change every run that is resumed."""
    assert hash63(0, "draw", 1) == 8601737966190873244
    assert hash63("1") != hash63(1)
    assert hash63("a", "b") != hash63("ab")


@given(st.integers(1, 300), st.integers())
def test_a_permutation_takes_every_place_once(length: int, seed: int) -> None:
    assert sorted(permuted(i, length, seed, "x") for i in range(length)) == list(range(length))


def test_permutations_differ_by_seed_and_mix() -> None:
    first, second = ([permuted(i, 1000, seed) for i in range(1000)] for seed in (1, 2))
    assert first != second
    # a shuffled list has about one fixed point, and its neighbours are far apart
    assert sum(i == n for i, n in enumerate(first)) < 8
    assert 250 < sum(abs(a - b) for a, b in pairwise(first)) / 999 < 420
