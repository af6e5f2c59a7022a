"""Where a transport stream lost data, and where another one was joined to it, by its counters.

A transport stream consists of packets of 188 bytes; some recorders add 4 bytes before or 16 behind
each. A packet states its track and counts the packets of the track modulo 16. A counter that does
not go on shows a loss, or that another stream was joined there. A joined stream begins with tables
of its programs, whose counters do not go on either, and its first picture is a key frame. The last
transport packet of the picture before is filled up; one that is full by chance counts as a loss.
A clock may start anew only where a counter does not go on, or where a packet announces it with its
discontinuity indicator. Everywhere else a leap of the time stamps is a pause.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

__all__ = ["Breaks", "breaks", "ends_within_a_packet", "marked"]

_SYNC = 0x47
# PIDs of the program association table (PAT) and of the service description table (SDT)
_TABLES = (0, 17)
_SIZES = (188, 192, 204)
# number of packets that must begin with the sync byte to determine the packet size
_PROBED = 8
_CHUNK_PACKETS = 1 << 15
# A transport packet: its offset in the file, its track and its counter; whether a picture
# begins in it; whether it has stuffing, as at the end of a picture; whether its discontinuity
# indicator is set. A packet without data has the counter of the one before.
_HEAD = np.dtype("i8, i2, i1, ?, ?, ?, ?")
_HEAD.names = ("place", "track", "counter", "begins", "ends", "renewed", "has_data")


class Breaks(NamedTuple):
    """Discontinuities of a track's counter.

    Attributes:
        places: (n,) int64, FFmpeg's places of the transport packets behind the breaks.
        joins: (n,) bool, another stream begins there if a key frame does; no picture before is cut.
        clocks: (m,) int64 places where the clock may start anew: those of all breaks, also of the
            tables' counters, and of the discontinuity indicators of any track.
        known: the place up to which the counters were read.
    """

    places: np.ndarray
    joins: np.ndarray
    clocks: np.ndarray
    known: int


def breaks(path: Path, track: int) -> Breaks:
    """All breaks of a track, up to the first transport packet without a sync byte."""
    empty = np.zeros((2, 0), _HEAD)
    last = dict.fromkeys((track, *_TABLES), empty[0])
    # (before and behind, breaks) of each chunk of the file
    found = {number: [empty] for number in last}
    clocks, known = [empty[0]["place"]], -1
    with path.open("rb") as file:
        for heads in _heads(file):
            known = int(heads["place"].max(initial=known))
            clocks.append(heads["place"][heads["renewed"]])
            heads = heads[heads["has_data"]]
            for number, pairs in found.items():
                rows = np.concatenate([last[number], heads[heads["track"] == number]])
                last[number] = rows[-1:]
                steps = np.diff(rows["counter"]) % 16
                bad = np.flatnonzero((steps != 1) & ~rows["renewed"][1:])
                pairs.append(np.stack([rows[bad], rows[bad + 1]]))
    before, behind = np.concatenate(found.pop(track), axis=1)
    tables = np.concatenate([pair for pairs in found.values() for pair in pairs], axis=1)
    restarts = np.sort(tables[1]["place"])
    first, stop = (np.searchsorted(restarts, side["place"]) for side in (before, behind))
    joins = before["ends"] & behind["begins"] & (stop > first)
    places = np.concatenate([*clocks, restarts, behind["place"]])
    return Breaks(behind["place"], joins, places, known)


def marked(
    damaged: np.ndarray, places: np.ndarray, keys: np.ndarray, found: Breaks
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The packets of a track that a loss damages, that begin a joined stream, or a clock perhaps.

    Args:
        damaged: (n,) bool, FFmpeg's flags. It flags joins, too, and misses losses in the first two
            packets.
        places: (n,) int64, ascending: FFmpeg's places of the packets.
        keys: (n,) bool, key frames. FFmpeg finds them in the pictures' own data; not every writer
            marks them in the transport packets.
        found: the breaks of the track.

    Returns:
        three columns (n,) bool: damaged by a loss; the first of a joined stream; the first behind a
        place where the clock may start anew.
    """
    flags, joins = damaged.copy(), np.zeros(len(damaged), np.bool_)
    leaps = places > found.known
    behind = np.searchsorted(places, found.clocks)
    leaps[behind[behind < len(places)]] = True
    # a break damages the packet that began before it; packets may begin at one place
    ends = np.searchsorted(places, found.places)
    joined = found.joins & (ends > 0) & np.append(keys, False)[ends]
    joins[ends[joined]] = True
    flags[ends[joined] - 1] = False
    for end in ends[~joined & (ends > 0)].tolist():
        flags[np.searchsorted(places, places[end - 1]) : end] = True
    return flags, joins, leaps


def ends_within_a_packet(file: BinaryIO, end: int) -> bool:
    """Whether a transport stream of `end` bytes lacks the end of its last transport packet."""
    file.seek(0)
    layout = _layout(file.read(_PROBED * max(_SIZES)))
    if layout is None:
        return False
    size, start = layout
    # only 192-byte packets have bytes (4) before the sync byte
    return (end - start + (4 if size == 192 else 0)) % size > 0


def _heads(file: BinaryIO) -> Iterator[np.ndarray]:
    """The transport packets, in chunks: (packets of a chunk,) of dtype `_HEAD`."""
    layout = _layout(file.read(_PROBED * max(_SIZES)))
    if layout is None:
        return
    size, place = layout
    file.seek(place)
    while chunk := file.read(_CHUNK_PACKETS * size):
        rows = np.frombuffer(chunk, np.uint8)[: len(chunk) // size * size].reshape(-1, size)
        lost = np.flatnonzero(rows[:, 0] != _SYNC)
        rows = rows[: lost[0]] if len(lost) else rows
        # FFmpeg's place of a packet
        yield _parsed(rows[:, :6], place + 188 - size + size * np.arange(len(rows)))
        if len(lost):
            return
        place += len(chunk)


def _layout(data: bytes) -> tuple[int, int] | None:
    """The size of a transport packet, and where the first one begins."""
    for size in _SIZES:
        for start in range(size):
            if set(data[start : start + size * (_PROBED - 1) : size]) == {_SYNC}:
                return size, start
    return None


def _parsed(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    heads = np.zeros(len(rows), _HEAD)
    heads["place"] = places
    heads["track"] = (rows[:, 1] & 31).astype(np.int16) << 8 | rows[:, 2]
    heads["counter"] = rows[:, 3] & 15
    # an optional field: its length, flags, one clock or two, other data (flags 7), and filling
    has_field, length = rows[:, 3] & 32 != 0, rows[:, 4]
    flags = np.where(has_field & (length > 0), rows[:, 5], 0)
    stated = 1 + 6 * (flags >> 4 & 1) + 6 * (flags >> 3 & 1)
    heads["begins"] = rows[:, 1] & 64 != 0
    heads["ends"] = has_field & (flags & 7 == 0) & ((length > stated) | (flags == 0))
    heads["renewed"] = flags & 128 != 0
    heads["has_data"] = rows[:, 3] & 16 != 0
    return heads
