"""The frames of a stream in display order, with their times: from packets, without decoding.

Only where the stamps of a reordered stream contradict each other, the few stretches around them are
decoded, because then the decoder alone knows the order of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import numpy as np

from timeviper_fast.video.packets import UNKNOWN, Packets
from timeviper_fast.video.stamps import joined, late, mended, misfits, suspects, uneven

__all__ = ["Clock", "DisplayOrder", "Timeline", "timeline"]

DisplayOrder = Callable[[int, int], list[int]]
"""(start, stop) to the packets start .. stop - 1 in the order in which they are displayed."""

# if more packets than these must be decoded to order them, the file is counted instead
_MOST_DECODED = 3000
# seconds; a shorter gap at an end is an ordinary pause
_FAR = 10.0
# so many may be decoded where stamps are only unusual
_MOST_CHECKED = 600
# pictures that decoders hold back
_DEPTHS = range(1, 9)


class Clock(NamedTuple):
    """What a file says about its time stamps.

    Attributes:
        tick: seconds per unit of a stamp.
        rate: frames per second that the file declares.
        reorders: pictures are stored in another order than that of their display.
        states_display: the container stores presentation stamps (AVI stores none).
        states_decoding: the container stores decode stamps. For Matroska, which stores none, FFmpeg
            derives them from the presentation stamps, so that both have the same flaws.
    """

    tick: Fraction
    rate: Fraction
    reorders: bool
    states_display: bool
    states_decoding: bool = True


class Timeline(NamedTuple):
    """All packets in display order, with the times of those that are shown.

    Attributes:
        order: (n,) int64 packet numbers.
        seconds: (number of shown packets,) float64, ascending.
        is_counted: the order is unknown until all pictures before are decoded; `order` is then that
            of the file.
        last: seconds for which the last one is shown.
        notes: sentences about flawed stamps.
    """

    order: np.ndarray
    seconds: np.ndarray
    is_counted: bool
    last: float
    notes: list[str]

    @property
    def end(self) -> float:
        """The second in which the last frame ends."""
        return float(self.seconds[-1]) + self.last if len(self.seconds) else 0.0


def timeline(packets: Packets, clock: Clock, display_order: DisplayOrder) -> Timeline:
    """Order the packets and mend their stamps."""
    reorders = clock.reorders or _falls_often(packets.pts)
    stamps = packets.pts
    if not reorders:
        stamps = np.where(stamps == UNKNOWN, packets.dts, stamps)
    stated = np.count_nonzero(stamps != UNKNOWN)
    is_counted = reorders and (not clock.states_display or 2 * stated <= len(stamps))
    if is_counted:
        stamps = packets.dts
    if np.all(stamps == UNKNOWN):
        return _without_stamps(packets, clock, reorders)
    ascending = packets.dts if reorders else stamps
    step = _usual_step(ascending, clock)
    # The stamps of hidden packets repeat those of shown ones: an mp4 file with several edits stores
    # the packets between two edits again, from the second edit's key frame on.
    shown = np.where(packets.shown, ascending, UNKNOWN)
    parts, moves = _parts(shown, packets, step, clock)
    stamps, ascending = (_moved(column, parts, moves) for column in (stamps, ascending))
    order = by_time = np.arange(len(stamps))
    if reorders and not is_counted:
        odd = misfits(stamps, ascending, step) if clock.states_decoding else uneven(stamps, step)
        unusual = chain([odd], (late(stamps, depth) for depth in _DEPTHS))
        by_time, is_counted = _display_order(stamps, packets.keys, unusual, display_order)
        order = order if is_counted else by_time
    ticks, mends = mended(stamps[by_time][packets.shown[by_time]], step)
    ticks *= clock.tick.numerator
    ticks /= clock.tick.denominator
    last = int(packets.durations[order[-1]]) * clock.tick or 1 / clock.rate
    notes = mends._replace(joins=len(parts)).sentences(len(ticks)) + _far_ends(ticks)
    return Timeline(order, ticks, is_counted, float(last), notes)


def _far_ends(seconds: np.ndarray) -> list[str]:
    """Sentences about a first or last frame that is far from all others.

    It may follow a pause, or its stamp may be flawed. Only a frame on its other side would tell.
    """
    if len(seconds) < 3:
        return []
    first, last = seconds[1] - seconds[0], seconds[-1] - seconds[-2]
    others = {"first": seconds[-1] - seconds[1], "last": seconds[-2] - seconds[0]}
    return [
        f"the {name} frame is {gap:.6g} s from its neighbour, longer than all others take "
        "together; its time stamp may be flawed"
        for (name, rest), gap in zip(others.items(), (first, last))
        if gap > max(_FAR, rest)
    ]


def _without_stamps(packets: Packets, clock: Clock, reorders: bool) -> Timeline:
    seconds = np.arange(np.count_nonzero(packets.shown)) / float(clock.rate)
    note = f"it states no times; {float(clock.rate):.6g} frames per second are assumed"
    last = float(1 / clock.rate)
    order = np.arange(len(packets.pts))
    return Timeline(order, seconds, reorders, last, [note])


def _falls_often(stamps: np.ndarray) -> bool:
    """Whether so many stamps are below the one before that pictures must be reordered."""
    falls = int(np.count_nonzero(np.diff(stamps[stamps != UNKNOWN]) < 0))
    return falls > max(3, len(stamps) // 10)


def _usual_step(stamps: np.ndarray, clock: Clock) -> float:
    """Ticks from one frame to the next."""
    steps = np.diff(stamps[stamps != UNKNOWN])
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else float(1 / (clock.rate * clock.tick))


def _parts(
    ascending: np.ndarray, packets: Packets, step: float, clock: Clock
) -> tuple[np.ndarray, np.ndarray]:
    """The packets with which further parts of a joined file begin, and the ticks to move each."""
    known = np.flatnonzero(ascending != UNKNOWN)
    second = float(1 / clock.tick)
    # what is said of packets without a stamp holds for the next one that has a stamp
    joins, leaps = (
        np.diff(np.cumsum(column)[known], prepend=0) > 0
        for column in (packets.joins, packets.may_leap)
    )
    starts, moves = joined(ascending[known], joins, step, second, leaps)
    return known[starts], np.rint(moves).astype(np.int64)


def _moved(stamps: np.ndarray, parts: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """The stamps, each part of a joined file moved to the end of the one before."""
    if not len(parts):
        return stamps
    moved = stamps.copy()
    for start, end, move in zip(parts, [*parts[1:], len(stamps)], moves):
        part = moved[start:end]
        part[part != UNKNOWN] += move
    return moved


def _display_order(
    stamps: np.ndarray,
    keys: np.ndarray,
    unusual: Iterable[np.ndarray],
    display_order: DisplayOrder,
) -> tuple[np.ndarray, bool]:
    """Packet numbers in display order, and whether the order within key frames is a guess.

    `unusual` are packets (n,) bool whose stamps may be flawed; those of the first column that takes
    little decoding are checked.
    """
    doubtful = suspects(stamps)
    bounds = np.flatnonzero(keys)
    begins, ends = np.append(0, bounds), np.append(bounds, len(stamps))
    groups = np.searchsorted(bounds, np.arange(len(stamps)), "right")

    def cost(packets: np.ndarray) -> int:
        wanted = np.unique(groups[packets])
        return int(np.sum(ends[wanted] - begins[np.maximum(wanted - 1, 0)]))

    checked = (doubtful | odd for odd in unusual)
    doubtful = next((some for some in checked if cost(some) <= _MOST_CHECKED), doubtful)
    if not doubtful.any():
        return np.argsort(stamps, kind="stable"), False
    order = np.lexsort((stamps, groups))
    if cost(doubtful) > _MOST_DECODED:
        return order, True
    for group in np.unique(groups[doubtful]).tolist():
        begin, end = int(begins[group]), int(ends[group])
        # leading pictures refer to the key frame before
        shown = [at for at in display_order(int(begins[max(group - 1, 0)]), end) if at >= begin]
        order[begin:end] = shown + sorted(set(range(begin, end)) - set(shown))
    return order, False
