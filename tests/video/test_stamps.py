"""Flawed time stamps are mended where they are flawed, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timeviper_fast.video.packets import UNKNOWN
from timeviper_fast.video.stamps import Mends, joined, late, mended, misfits, suspects, uneven


@pytest.mark.parametrize(
    ("stamps", "times", "mends"),
    [
        ([0, 10, 25, 30], [0, 10, 25, 30], Mends()),
        # the one between its neighbours, evenly
        ([0, UNKNOWN, UNKNOWN, 30], [0, 10, 20, 30], Mends(missing=2)),
        # a step apart where there is no neighbour
        ([UNKNOWN, 10, 20, UNKNOWN], [0, 10, 20, 30], Mends(missing=2)),
        ([0, 10, 20, 5, 40], [0, 10, 20, 30, 40], Mends(misplaced=1)),
        ([0, 9000, 20, 30], [0, 10, 20, 30], Mends(misplaced=1)),
        # equal ones stay where the file puts them, a tick apart, or closer
        ([0, 10, 10, 30], [0, 10, 11, 30], Mends(repeated=1)),
        ([0, 10, 10, 11], [0, 10, 10.5, 11], Mends(repeated=1)),
        ([0, 10, 10], [0, 10, 11], Mends(repeated=1)),
        ([UNKNOWN, UNKNOWN], [0, 10], Mends(missing=2)),
    ],
)
def test_a_flawed_stamp_gets_a_time_between_its_neighbours(
    stamps: list[int], times: list[float], mends: Mends
) -> None:
    actual, counted = mended(np.array(stamps, np.int64), 10.0)
    assert actual.tolist() == times
    assert counted == mends


@given(
    steps=st.lists(st.integers(1, 500), min_size=3, max_size=120),
    flaws=st.lists(st.tuples(st.integers(0, 119), st.integers(-900, 900)), max_size=4),
)
def test_times_ascend_and_sound_stamps_stay(steps: list[int], flaws: list[tuple[int, int]]) -> None:
    sound = np.cumsum(steps)
    stamps = sound.copy()
    for place, shift in flaws:
        stamps[place % len(stamps)] += shift
    times, mends = mended(stamps, 10.0)
    assert bool((np.diff(times) > 0).all())
    # no more are changed than were spoilt, or stand in an equally long order with them
    assert int((times != stamps).sum()) <= mends.stamps
    assert mends.misplaced <= len(flaws)
    if not flaws:
        assert times.tolist() == sound.tolist()


def parts_of(
    stamps: np.ndarray, *joins: int, may_leap: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """What `joined` finds in ticks of 1/100 s at 10 frames per second."""
    leaps = np.full(len(stamps), may_leap)
    return joined(stamps, np.isin(np.arange(len(stamps)), joins), 10.0, 100.0, leaps)


def test_a_clock_that_starts_anew_goes_on() -> None:
    part = np.arange(20) * 10
    starts, moves = parts_of(np.concatenate([part + 500, part, part + 100_000]))
    assert starts.tolist() == [20, 40]
    # 690 is followed by 700, which was 0, and 890 by 900, which was 100000
    assert moves.tolist() == [700, 900 - 100_000]
    # where a clock cannot start anew ahead, a leap is a pause
    starts, moves = parts_of(np.concatenate([part, part + 100_000]), may_leap=False)
    assert not len(starts)


def test_a_part_between_two_others_does_not_hide_its_time() -> None:
    """An inserted part has a clock of its own; the film then goes on with the clock before."""
    film, insert = np.arange(40) * 10, np.arange(12) * 10
    stamps = np.concatenate([film[:20], insert, film[20:]])
    starts, moves = parts_of(stamps)
    assert starts.tolist() == [20, 32]
    assert moves.tolist() == [200, 120]


def test_a_known_join_is_a_part_wherever_its_clock_starts() -> None:
    film = np.arange(20) * 10
    # one frame with a clock ahead, and then the clock before
    starts, moves = parts_of(np.array([*film, 5000, *(film + 200)]), 20, 21)
    assert starts.tolist() == [20, 21]
    assert moves.tolist() == [200 - 5000, 10]
    # by less than what decides whether a fall is one flawed stamp
    starts, moves = parts_of(np.array([*film, *(film + 185)]), 20)
    assert starts.tolist() == [20]
    assert moves.tolist() == [15]
    assert not len(parts_of(np.array([*film, *(film + 185)]))[0])
    # a clock that goes on, with a pause or without, is left alone
    for first in (200, 260):
        assert not len(parts_of(np.array([*film, *(film + first)]), 20)[0])


@pytest.mark.parametrize("flaw", [(7, -60), (7, 5000), (0, 5000), (19, -100)])
def test_one_flawed_stamp_is_no_join(flaw: tuple[int, int]) -> None:
    stamps = np.arange(20) * 10
    stamps[flaw[0]] += flaw[1]
    starts, _ = parts_of(stamps)
    assert not len(starts)


def test_stamps_that_contradict_a_display_order_are_found() -> None:
    # stored order of a stream with two pictures between references
    stamps = np.array([0, 3, 1, 2, 6, 4, 5] + [6 + i for i in range(1, 30)])
    assert not suspects(stamps).any()
    stamps[4] = 3
    assert np.flatnonzero(suspects(stamps)).tolist() == [1, 4]
    stamps[4] = UNKNOWN
    assert np.flatnonzero(suspects(stamps)).tolist() == [4]
    stamps[4] = 900
    assert 4 in np.flatnonzero(suspects(stamps))


def test_a_stamp_that_is_sorted_into_a_wrong_place_fits_no_decode_stamp() -> None:
    stored = np.concatenate([[0], *([3 * i + 3, 3 * i + 1, 3 * i + 2] for i in range(10))])
    uneven = np.cumsum([5 + i % 7 for i in range(31)])
    stamps, decode = uneven[stored], np.concatenate([[-12, -6], uneven[:-2]])
    assert not misfits(stamps, decode, 8.0).any()
    moved = stamps.copy()
    moved[14] -= 40
    assert misfits(moved, decode, 8.0).any()
    # decode stamps of another kind tell nothing
    assert not misfits(moved, np.sort(np.cumsum(np.arange(31) ** 2)), 8.0).any()


def test_a_stamp_in_a_wrong_place_leaves_a_gap_and_narrows_another() -> None:
    stored = np.array([0, 3, 1, 2, 6, 4, 5, 9, 7, 8])
    stamps = stored * 10
    assert not uneven(stamps, 10.0).any()
    # stamps that are rounded to whole ticks
    assert not uneven(stamps + np.array([0, 2, 0, 1, 0, 2, 1, 0, 0, 1]), 10.0).any()
    stamps[5] -= 15
    # 40 becomes 25: between 20 and 30, and away from 30 and 50
    assert np.flatnonzero(uneven(stamps, 10.0)).tolist() == [1, 3, 5, 6]


def test_a_stamp_in_a_wrong_place_comes_too_late_for_a_short_queue() -> None:
    stored = np.array([0, 3, 1, 2, 6, 4, 5, 9, 7, 8, 12, 10, 11])
    stamps = stored**2
    assert not late(stamps, 1).any()
    # two pictures that are stored in falling order need a queue of two
    assert late(np.array([0, 3, 2, 1, 6, 5, 4]), 1).any()
    assert not late(np.array([0, 3, 2, 1, 6, 5, 4]), 2).any()
    # 4 becomes 1.5, and is wanted before 3 is shown
    stamps[5] = 2
    assert np.flatnonzero(late(stamps, 1)).tolist() == [1, 5]


def test_what_was_mended_is_said() -> None:
    assert Mends().sentences(10) == []
    assert Mends(missing=1, repeated=2, joins=1).sentences(10) == [
        "3 of 10 time stamps are mended (1 missing, 2 repeated)",
        "the time stamps start anew in 1 place; each part follows the one before",
    ]
