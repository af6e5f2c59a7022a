"""Losses and joins of transport streams, by the counters in their packets."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from timeviper_fast.video.continuity import Breaks, breaks, ends_within_a_packet, marked

FILM = 256


def packet(track: int, count: int, *, begins: bool = False, filled: bool = False) -> bytes:
    """A transport packet with data; none is marked as that of a key frame."""
    head = bytes([0x47, begins << 6 | track >> 8, track & 255])
    if filled:
        field = bytes([9, 0]) + b"\xff" * 8
        return (head + bytes([0x30 | count % 16]) + field).ljust(188, b"\1")
    return (head + bytes([0x10 | count % 16])).ljust(188, b"\1")


def announcement(track: int, count: int) -> bytes:
    """A transport packet without data that has the discontinuity indicator."""
    head = bytes([0x47, track >> 8, track & 255, 0x20 | count % 16, 183, 128])
    return head.ljust(188, b"\xff")


def film(first: int = 0) -> list[bytes]:
    """Tables and a picture of 40 packets."""
    pictures = [packet(FILM, i + first, begins=i == 0, filled=i == 39) for i in range(40)]
    return [packet(0, first), packet(17, first), *pictures]


def found(path: Path, packets: list[bytes], before: int = 0, behind: int = 0) -> tuple[list, list]:
    path.write_bytes(b"".join(bytes(before) + data + bytes(behind) for data in packets))
    places, joins, *_ = breaks(path, FILM)
    return (places // (188 + before + behind)).tolist(), joins.tolist()


def clocks(path: Path, packets: list[bytes]) -> list[int]:
    """The transport packets at which the clock may start anew."""
    path.write_bytes(b"".join(packets))
    return np.unique(breaks(path, FILM).clocks // 188).tolist()


@pytest.mark.parametrize(("before", "behind"), [(0, 0), (4, 0), (0, 16)])
def test_a_loss_is_where_the_counter_does_not_go_on(
    tmp_path: Path, before: int, behind: int
) -> None:
    packets = film()
    path = tmp_path / "film.ts"
    assert found(path, packets, before, behind) == ([], [])
    del packets[20]
    places, joins = found(path, packets, before, behind)
    assert places == ([20] if not behind else [19])
    assert joins == [False]


@pytest.mark.parametrize(("before", "behind"), [(0, 0), (4, 0), (0, 16)])
def test_a_stream_ends_with_a_whole_packet(before: int, behind: int) -> None:
    data = b"".join(bytes(before) + row + bytes(behind) for row in film())
    assert not ends_within_a_packet(BytesIO(data), len(data))
    for length in (1, 100, 187):
        assert ends_within_a_packet(BytesIO(data[:-length]), len(data) - length)
    assert not ends_within_a_packet(BytesIO(bytes(5000)), 5000)


def test_a_join_is_between_whole_pictures_where_the_tables_start_anew(tmp_path: Path) -> None:
    path = tmp_path / "film.ts"
    assert found(path, film() + film()) == ([44], [True])
    # the last picture of the first stream is cut
    assert found(path, film()[:-1] + film()) == ([43], [False])
    # the tables go on, so that this is a loss
    assert found(path, [*film(), packet(0, 1), packet(17, 1), *film()[2:]]) == ([44], [False])
    # no picture begins behind it
    assert found(path, film() + film()[:2] + film()[3:]) == ([44], [False])
    # one table goes on by chance
    assert found(path, [*film(), packet(0, 1), *film()[1:]]) == ([44], [True])


def test_a_clock_may_start_anew_where_any_counter_breaks_or_a_packet_announces_it(
    tmp_path: Path,
) -> None:
    path, whole = tmp_path / "film.ts", film()
    # 40 pictures' packets, after which counter 8 follows
    longer = [*whole, packet(0, 1), packet(17, 1), packet(FILM, 40, begins=True)]
    assert clocks(path, longer) == []
    lost = longer.copy()
    del lost[20]
    assert clocks(path, lost) == [20]
    # the film's counter goes on by chance, and that of a table does not
    assert clocks(path, [*whole, packet(0, 5), packet(17, 1), packet(FILM, 40, begins=True)]) == [
        42
    ]
    for track in (FILM, FILM + 1):
        assert clocks(path, [*whole, announcement(track, 39), *longer[42:]]) == [42]
    assert breaks(path, FILM).places.tolist() == []


def test_what_is_not_read_may_leap(tmp_path: Path) -> None:
    path, whole = tmp_path / "film.ts", film()
    path.write_bytes(b"".join(whole) + bytes(188) + b"".join(whole))
    found = breaks(path, FILM)
    assert found.known == 41 * 188
    places, keys = np.array([2 * 188, 45 * 188]), np.array([True, False])
    assert marked(keys & False, places, keys, found)[2].tolist() == [False, True]


def test_counters_go_on_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timeviper_fast.video.continuity._CHUNK_PACKETS", 7)
    assert found(tmp_path / "film.ts", film() + film()) == ([44], [True])
    packets = film()
    del packets[21]
    assert found(tmp_path / "film.ts", packets) == ([21], [False])


def at(place: int, is_join: bool = False) -> Breaks:
    """One break of a stream that is read to its end."""
    return Breaks(np.array([place]), np.array([is_join]), np.array([place]), 10_000)


def test_a_loss_damages_the_packet_before_it() -> None:
    places, keys = np.array([0, 188, 188, 376, 564]), np.array([True, False, False, False, True])
    flags = np.array([False, False, False, True, False])
    joined = at(564, is_join=True)
    damaged, joins, leaps = marked(flags, places, keys, joined)
    assert not damaged.any()
    assert np.flatnonzero(joins).tolist() == np.flatnonzero(leaps).tolist() == [4]
    # a stream does not begin with a picture that refers to others
    damaged, joins, leaps = marked(flags, places, keys & ~keys, joined)
    assert damaged.tolist() == [False, False, False, True, False]
    assert not joins.any()
    # two packets begin at one place
    damaged, joins, leaps = marked(flags, places, keys, at(376))
    assert damaged.tolist() == [False, True, True, True, False]
    assert not joins.any()
    assert np.flatnonzero(leaps).tolist() == [3]
    damaged, *_ = marked(flags & False, places, keys, at(0))
    assert not damaged.any()
    # behind the last picture
    damaged, *_ = marked(flags & False, places, keys, at(752, is_join=True))
    assert damaged.tolist() == [False, False, False, False, True]
