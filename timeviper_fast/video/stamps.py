"""Time stamps of packets to the times of frames: keep what a file says, mend what cannot be true.

Everything here is arithmetic on columns of numbers. A stamp is flawed if it is missing, or if it
breaks the order in which the pictures are displayed. A flawed stamp is replaced by a time between
its neighbours; pictures with equal stamps are put at most one tick apart. Where files were joined,
the stamps start anew: each part is moved to continue where the part before it ends.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heappush, heappushpop
from typing import NamedTuple

import numpy as np

from timeviper_fast.video.packets import UNKNOWN

__all__ = ["Mends", "joined", "late", "mended", "misfits", "suspects", "uneven"]

# packets before and behind a fall or a leap that decide whether it is a join or one flawed stamp
_WINDOW = 8
# no codec displays a picture more than 16 pictures before or after its place in the file
_REORDERED = 16
# pictures that a decoder may hold back, of which fewer than these are tried
_DELAYS = 5
# seconds; a stamp within this time of an earlier part's end continues that part
_RETURN = 0.5


class Mends(NamedTuple):
    """How many time stamps of a file were flawed, by kind."""

    missing: int = 0
    misplaced: int = 0
    repeated: int = 0
    joins: int = 0

    @property
    def stamps(self) -> int:
        return self.missing + self.misplaced + self.repeated

    def sentences(self, frames: int) -> list[str]:
        """What was mended, for people."""
        kinds = zip(self._fields, self)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds if count and kind != "joins")
        said = [f"{self.stamps} of {frames} time stamps are mended ({counts})"] if counts else []
        if self.joins:
            places = "1 place" if self.joins == 1 else f"{self.joins} places"
            said.append(f"the time stamps start anew in {places}; each part follows the one before")
        return said


def joined(
    stamps: np.ndarray, joins: np.ndarray, step: float, second: float, may_leap: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where a file's clock starts anew, and by how much it must be moved there.

    Args:
        stamps: (n,) int64 in an order in which they should ascend, no UNKNOWN.
        joins: (n,) bool, a further stream begins there for certain.
        step: ticks of a usual frame.
        second: ticks of a second.
        may_leap: (n,) bool, the clock may also start anew ahead there, as where the counters of a
            transport stream break: a leap of more than 10 s is no pause there.

    Returns:
        (starts, moves): packet numbers where a part starts, and the ticks to add from there on, to
        the stamps as the file states them.
    """
    starts: list[int] = []
    moves: list[float] = []
    ends: list[int] = []
    steps = np.diff(stamps)
    leap = 10 * second
    # a part can be followed by an earlier one's clock only where there are several
    wide = 2 * step if (steps < 0).any() else leap
    for at in np.flatnonzero((steps < 0) | (may_leap[1:] & (steps > wide))) + 1:
        before = stamps[max(at - _WINDOW, starts[-1] if starts else 0) : at]
        after = stamps[at : at + _WINDOW]
        low = high = before.max()
        if joins[at]:
            after = after[:1]
        elif min(len(before), len(after)) < 2:
            continue
        else:
            # one stamp of either side may be flawed itself
            low = np.partition(before, -2)[-2]
        returns = any(0 <= after[0] - end <= _RETURN * second for end in ends)
        falls = 2 * np.count_nonzero(after < low) > len(after)
        leaps = 2 * np.count_nonzero(after > low + leap) > len(after)
        if falls or (may_leap[at] and (leaps or returns)):
            ends.append(int(high))
            starts.append(int(at))
            moves.append((moves[-1] if moves else 0.0) + float(high - after[0]) + step)
    return np.array(starts, np.int64), np.array(moves)


def suspects(stamps: np.ndarray) -> np.ndarray:
    """The packets (n,) bool whose stamps do not tell the display order of a reordered stream.

    Those are unknown or repeated, or stand further from their place in the file than pictures are
    reordered.
    """
    found = stamps == UNKNOWN
    order = np.argsort(stamps, kind="stable")
    same = np.diff(stamps[order]) == 0
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    known = np.where(stamps == UNKNOWN, 2**62, stamps)
    lowest = np.minimum.accumulate(known[::-1])[::-1]
    highest = np.maximum.accumulate(np.where(stamps == UNKNOWN, -(2**62), stamps))
    if len(stamps) > _REORDERED:
        found[:-_REORDERED] |= stamps[:-_REORDERED] > lowest[_REORDERED:]
        found[_REORDERED:] |= stamps[_REORDERED:] < highest[:-_REORDERED]
    return found


def misfits(stamps: np.ndarray, decode: np.ndarray, step: float) -> np.ndarray:
    """The packets (n,) bool whose presentation stamps do not fit the decode stamps.

    Sorted, the presentation stamps run beside the decode stamps, a few pictures behind them. Where
    one is sorted into a wrong place, those between this place and its own one do not. If more than
    half of them do not fit, the decode stamps are of another kind, and tell nothing.
    """
    order = np.argsort(stamps, kind="stable")
    found = np.zeros(len(stamps), np.bool_)
    if UNKNOWN in (stamps[order[:1]], decode.min(initial=0)):
        return found
    fewest = len(stamps) // 2
    for delay in range(min(_DELAYS, len(stamps))):
        gaps = stamps[order[: len(stamps) - delay]] - decode[delay:]
        off = np.abs(gaps - np.median(gaps)) > step / 2
        if np.count_nonzero(off) < fewest:
            fewest = int(np.count_nonzero(off))
            found[:] = False
            found[order[: len(off)][off]] = True
    return found


def late(stamps: np.ndarray, depth: int) -> np.ndarray:
    """The packets (n,) bool that come too late for a decoder that holds back `depth` pictures.

    Such a decoder shows the earliest of them whenever a further one comes. Where it is earlier than
    a picture shown before, one of the two has a flawed stamp, or the stream is reordered more
    deeply there. Both are marked.
    """
    found = np.zeros(len(stamps), np.bool_)
    held: list[tuple[int, int]] = []
    last = (UNKNOWN, 0)
    for row in zip(stamps.tolist(), range(len(stamps))):
        if len(held) < depth:
            heappush(held, row)
            continue
        shown = heappushpop(held, row)
        if shown[0] < last[0]:
            found[[shown[1], last[1]]] = True
        last = max(last, shown)
    return found


def uneven(stamps: np.ndarray, step: float) -> np.ndarray:
    """The packets (n,) bool whose sorted stamps lie no usual step from their neighbours.

    A stamp that is sorted into a wrong place leaves a wide gap at its own place, and makes a narrow
    one where it comes to lie. So do pauses: only the decoder can tell them apart.
    """
    order = np.argsort(stamps, kind="stable")
    odd = np.abs(np.diff(stamps[order]) - step) > step / 4
    found = np.zeros(len(stamps), np.bool_)
    found[order[1:][odd]] = True
    found[order[:-1][odd]] = True
    return found


def mended(stamps: np.ndarray, step: float) -> tuple[np.ndarray, Mends]:
    """Ascending times from stamps in display order.

    Args:
        stamps: (n,) int64 or float64 ticks; UNKNOWN where the file states none.
        step: ticks of a usual frame.

    Returns:
        (n,) float64 ticks, and what was flawed. Sound stamps are unchanged.
    """
    missing = stamps == UNKNOWN
    misplaced = ~missing
    misplaced[np.flatnonzero(misplaced)[_ascending(stamps[~missing])]] = False
    times = stamps.astype(np.float64)
    bad = missing | misplaced
    if bad.any():
        _interpolate(times, bad, step)
    repeated = _spread(times, step)
    return times, Mends(int(missing.sum()), int(misplaced.sum()), repeated)


def _ascending(values: np.ndarray) -> np.ndarray:
    """Indices of the longest subsequence that never falls: those of patience sorting."""
    falls = np.flatnonzero(np.diff(values) < 0)
    if not len(falls):
        return np.arange(len(values))
    # The search covers the falls and some stamps around them. All other stamps are kept.
    begin, end = max(falls[0] - 4 * _WINDOW, 0), falls[-1] + 1 + 4 * _WINDOW
    tops: list[float] = []
    holders: list[int] = []
    previous: list[int] = []
    for index, value in enumerate(values[begin:end].tolist()):
        pile = bisect_right(tops, value)
        previous.append(holders[pile - 1] if pile else -1)
        tops[pile : pile + 1] = [value]
        holders[pile : pile + 1] = [index]
    chain = [holders[-1]]
    while previous[chain[-1]] >= 0:
        chain.append(previous[chain[-1]])
    middle = begin + np.array(chain[::-1])
    return np.concatenate([np.arange(begin), middle, np.arange(min(end, len(values)), len(values))])


def _interpolate(times: np.ndarray, bad: np.ndarray, step: float) -> None:
    """Put the bad ones evenly between their neighbours, a step apart at the ends."""
    good = np.flatnonzero(~bad)
    places = np.flatnonzero(bad)
    if not len(good):
        times[:] = np.arange(len(times)) * step
        return
    times[places] = np.interp(places, good, times[good])
    first, last = good[0], good[-1]
    times[:first] = times[first] - step * np.arange(first, 0, -1)
    times[last + 1 :] = times[last] + step * np.arange(1, len(times) - last)


def _spread(times: np.ndarray, step: float) -> int:
    """Put equal times one tick apart, closer where the next one is near; how many were moved."""
    same = np.flatnonzero(np.diff(times) <= 0) + 1
    done = 0
    for place in same.tolist():
        if place < done:
            continue
        start, done = place - 1, place
        while done < len(times) and times[done] <= times[start]:
            done += 1
        room = times[done] - times[start] if done < len(times) else step
        gap = min(1.0, room / (done - start))
        times[start:done] = times[start] + gap * np.arange(done - start)
    return len(same)
