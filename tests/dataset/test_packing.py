"""Packs: within their tokens, first fit, nothing lost or repeated, and continued from any pack."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataset.common import Numbers
from timeviper_fast.dataset.mixture import Mixture
from timeviper_fast.dataset.packing import Pack, Packer
from timeviper_fast.dataset.sample import Draw
from timeviper_fast.errors import ArgumentError, DataError

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def packer(
    sizes: list[int], tokens: int = 20, window: int = 3, seed: int = 0, **options: str
) -> Packer:
    half = len(sizes) // 2
    parts = [part for part in (sizes[:half], sizes[half:]) if part]
    sources = [Numbers(str(i), part) for i, part in enumerate(parts)]
    mixed = Mixture(sources, [1.0] * len(parts), seed)
    return Packer(mixed, tokens, window, lambda cost: cost.text, **options)


def sizes_of(packed: Packer, pack: Pack) -> list[int]:
    return [packed.mixture.sources[draw.source].numbers[draw.index] for draw in pack.draws]


@given(SIZES, st.integers(1, 30), st.integers(1, 5), st.integers(0, 99))
def test_budgets_hold_and_nothing_is_lost_or_repeated(
    sizes: list[int], tokens: int, window: int, seed: int
) -> None:
    packed = packer(sizes, tokens, window, seed)
    packs = list(islice(packed, 25))
    for pack in packs:
        counts = sizes_of(packed, pack)
        assert pack.tokens == sum(counts)
        assert pack.tokens <= tokens or len(counts) == 1
    # each drawn sample is in exactly one returned or open pack
    drawn = Mixture(packed.mixture.sources, [1.0] * len(packed.mixture.sources), seed)
    expected = Counter(drawn.draw() for _ in range(packed.mixture.drawn))
    waiting = [Draw(*draw) for items in packs[-1].state["open"] for *draw, _ in items]
    assert Counter([draw for pack in packs for draw in pack.draws] + waiting) == expected
    assert len(packs[-1].state["open"]) <= window
    # within a pack draws keep their order
    order = list(expected)
    assert all(
        [order.index(d) for d in pack.draws] == sorted(order.index(d) for d in pack.draws)
        for pack in packs
    )


@given(SIZES, st.integers(0, 9), st.integers(1, 5), st.integers(0, 99))
def test_any_packs_state_continues_the_run(
    sizes: list[int], done: int, window: int, seed: int
) -> None:
    whole = list(islice(packer(sizes, window=window, seed=seed), done + 10))
    continued = packer(sizes, window=window, seed=seed)
    continued.load_state_dict(json.loads(json.dumps(whole[done].state)))
    assert list(islice(continued, 9)) == whole[done + 1 :]


def test_first_fit_and_the_oldest_goes() -> None:
    """Each sample has a different size, so the sizes in a pack identify its samples."""
    packed = packer([12, 15, 7, 20, 25, 3], window=2)
    bins: list[list[int]] = []
    given: list[list[int]] = []
    drawn = Mixture(packed.mixture.sources, [1.0, 1.0], 0)
    while len(given) < 12:
        draw = drawn.draw()
        size = drawn.sources[draw.source].numbers[draw.index]
        fitting = next((b for b in bins if sum(b) + size <= 20), None)
        if size >= 20:
            given.append([size])
        elif fitting is None:
            bins.append([size])
            if len(bins) > 2:
                given.append(bins.pop(0))
        else:
            fitting.append(size)
            if sum(fitting) == 20:
                bins.remove(fitting)
                given.append(fitting)
    assert [sizes_of(packed, pack) for pack in islice(packed, 12)] == given
    assert max(map(len, given)) > 1


def test_a_window_fills_packs() -> None:
    sizes = [(7 * i) % 41 + 5 for i in range(200)]
    filled = [
        sum(pack.tokens for pack in islice(packer(sizes, 100, window), 60)) / 6000
        for window in (1, 8)
    ]
    assert filled[1] > 0.95 > filled[0]


def test_faulty_rows() -> None:
    with pytest.raises(DataError, match="1:0: it is faulty"):
        list(islice(packer([5, -1]), 9))
    packed = packer([5, -1], on_error="skip")
    packs = list(islice(packed, 4))
    assert {size for pack in packs for size in sizes_of(packed, pack)} == {5}
    assert packed.skipped > 0
    assert packed.notes[-1] == "1:0: it is faulty"
    assert packs[-1].state["skipped"] == packed.skipped
    # if every row is faulty, no pack can ever be filled
    with pytest.raises(DataError):
        packer([-1, -1], on_error="skip").next()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": 0}, "tokens must be an integer above 0, got 0"),
        ({"window": 0}, "window must be an integer above 0, got 0"),
        ({"on_error": "pass"}, "on_error must be one of raise, skip, got 'pass'"),
    ],
)
def test_arguments_that_break_a_rule(options: dict, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=f"Packer: {sentence}"):
        packer([1], **options)
