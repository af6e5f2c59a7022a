"""Packets to frames in display order, with their times."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from timeviper_fast.video.packets import UNKNOWN, Packets
from timeviper_fast.video.timeline import Clock, Timeline, timeline

CLOCK = Clock(Fraction(1, 100), Fraction(10), False, True, False)
# stored order with two pictures between references; the display order is that of the numbers
STORED = np.array([0, 3, 1, 2, 6, 4, 5, 9, 7, 8, 12, 10, 11])


def never(start: int, stop: int) -> list[int]:
    raise AssertionError("nothing needs decoding here")


def build(
    pts: np.ndarray,
    dts: np.ndarray,
    clock: Clock = CLOCK,
    keys: tuple[int, ...] = (0,),
    leaps: tuple[int, ...] = (),
) -> Timeline:
    n = len(pts)
    packets = Packets(
        pts.astype(np.int64),
        dts.astype(np.int64),
        np.full(n, 10),
        np.isin(np.arange(n), keys),
        np.ones(n, np.bool_),
        *np.zeros((2, n), np.bool_),
        np.isin(np.arange(n), leaps),
    )
    return timeline(packets, clock, never)


def test_decode_stamps_stand_in_where_nothing_is_reordered() -> None:
    dts = np.arange(8) * 10
    pts = np.where(np.arange(8) == 3, UNKNOWN, dts)
    times = build(pts, dts)
    assert times.seconds.tolist() == pytest.approx([i / 10 for i in range(8)])
    assert times.notes == []
    assert (times.last, times.end) == (0.1, pytest.approx(0.8))


def test_reordered_frames_are_sorted_by_their_stamps() -> None:
    clock = CLOCK._replace(reorders=True)
    times = build(STORED * 10, np.arange(13) * 10 - 20, clock)
    assert times.order.tolist() == np.argsort(STORED).tolist()
    assert not times.is_counted


def test_the_decoder_orders_what_the_stamps_do_not() -> None:
    """Two pictures with one stamp: only the group of key frame 7 is decoded, behind the one before."""
    stored = np.concatenate([STORED[:7], 7 + STORED[:7], 14 + STORED[:7]])
    stamps = stored * 10
    stamps[10] = stamps[8]
    asked = []

    def decode(start: int, stop: int) -> list[int]:
        asked.append((start, stop))
        return (start + np.argsort(stored[start:stop])).tolist()

    clock = CLOCK._replace(reorders=True)
    n = len(stamps)
    flags = np.isin(np.arange(n), [0, 7, 14]), np.ones(n, np.bool_), *np.zeros((3, n), np.bool_)
    packets = Packets(stamps, np.arange(n) * 10 - 20, np.full(n, 10), *flags)
    times = timeline(packets, clock, decode)
    assert asked == [(0, 14)]
    assert times.order.tolist() == np.argsort(stored).tolist()
    assert "1 of 21 time stamps are mended" in times.notes[0]
    assert bool((np.diff(times.seconds) > 0).all())


@pytest.mark.parametrize("seconds", [-0.25, 0.25])
def test_one_flaw_in_a_long_film_of_a_variable_rate_is_decoded(seconds: float) -> None:
    """As in Matroska, whose decode stamps are made of the flawed stamps; keys are 14 apart."""
    stored = np.concatenate([7 * i + STORED[:7] for i in range(300)])
    true = np.cumsum(3 + np.arange(2100) ** 2 % 11)[stored]
    stamps = true.copy()
    # a picture that no other refers to
    flawed = int(np.flatnonzero(stored == 1001)[0])
    stamps[flawed] += round(100 * seconds)
    asked = []

    def decode(start: int, stop: int) -> list[int]:
        asked.append((start, stop))
        return (start + np.argsort(stored[start:stop])).tolist()

    n = np.arange(2100)
    flags = n % 14 == 0, np.ones(2100, np.bool_), *np.zeros((3, 2100), np.bool_)
    packets = Packets(stamps, np.sort(stamps) - 20, np.full(2100, 10), *flags)
    clock = CLOCK._replace(reorders=True, states_decoding=False)
    times = timeline(packets, clock, decode)
    assert len(asked) <= 2
    assert any(start <= flawed < stop for start, stop in asked)
    assert times.order.tolist() == np.argsort(stored).tolist()
    assert times.notes == ["1 of 2100 time stamps are mended (1 misplaced)"]
    whole = packets._replace(pts=true, dts=np.sort(true) - 20)
    assert timeline(whole, clock, never).order.tolist() == np.argsort(stored).tolist()


def test_without_presentation_stamps_frames_are_counted() -> None:
    clock = CLOCK._replace(reorders=True, states_display=False)
    # every third frame stands for ten
    dts = np.cumsum([10, 10, 100] * 4) - 10
    times = build(np.full(12, UNKNOWN), dts, clock)
    assert times.is_counted
    assert times.seconds.tolist() == pytest.approx((dts / 100).tolist())
    unknown = np.full(12, UNKNOWN)
    times = build(unknown, unknown, CLOCK._replace(reorders=True))
    assert times.is_counted
    assert times.seconds.tolist() == pytest.approx([i / 10 for i in range(12)])
    assert times.notes == ["it states no times; 10 frames per second are assumed"]


def test_joined_parts_follow_each_other() -> None:
    clock = CLOCK._replace(reorders=True)
    pts = np.concatenate([STORED * 10 + 140, STORED * 10 + 140])
    dts = np.concatenate([np.arange(13) * 10 + 120] * 2)
    times = build(pts, dts, clock, (0, 13))
    assert times.seconds.tolist() == pytest.approx([1.4 + i / 10 for i in range(26)])
    assert times.notes == [
        "the time stamps start anew in 1 place; each part follows the one before"
    ]


def test_a_clock_starts_anew_ahead_only_where_the_packets_say_that_it_may() -> None:
    """Two halves of 2 s; the stamps of the second are a minute ahead."""
    stamps = np.arange(40) * 10 + np.repeat([0, 6000], 20)
    paused = build(stamps, stamps)
    assert paused.seconds.tolist() == pytest.approx((stamps / 100).tolist())
    assert paused.notes == []
    followed = build(stamps, stamps, leaps=(20,))
    assert followed.seconds.tolist() == pytest.approx([i / 10 for i in range(40)])
    # the packet that may leap states no time; the next one does
    stamps[20] = UNKNOWN
    followed = build(stamps, stamps, leaps=(20,))
    assert followed.seconds[[19, 21, 39]].tolist() == pytest.approx([1.9, 2.0, 3.8])


@pytest.mark.parametrize(("place", "ticks"), [("first", -5000), ("last", 5000)])
def test_a_frame_far_from_all_others_is_said(place: str, ticks: int) -> None:
    at = 0 if place == "first" else -1
    stamps, longer = np.arange(30) * 10, np.arange(600) * 10
    assert build(stamps, stamps).notes == []
    stamps[at] += ticks
    (note,) = build(stamps, stamps).notes
    assert f"the {place} frame is 50.1 s from its neighbour" in note
    # a film of a minute may begin or end with a pause of this length
    longer[at] += ticks
    assert build(longer, longer).notes == []
