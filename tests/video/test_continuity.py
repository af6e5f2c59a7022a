"""Losses and joins of transport streams, by the counters in their packets."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from timeviper_fast.video.continuity import Breaks, breaks, ends_within_a_packet, marked

FILM = 256


def packet(track: int, count: int, *, begins: bool = False, filled: bool = False) -> bytes:
    """A transport packet; none is marked as that of a key frame."""
    head = bytes([0x47, begins << 6 | track >> 8, track & 255])
    if filled:
        field = bytes([9, 0]) + b"\xff" * 8
        return (head + bytes([0x30 | count % 16]) + field).ljust(188, b"\1")
    return (head + bytes([0x10 | count % 16])).ljust(188, b"\1")


def film(first: int = 0) -> list[bytes]:
    """Tables and a picture of 40 packets."""
    pictures = [packet(FILM, i + first, begins=i == 0, filled=i == 39) for i in range(40)]
    return [packet(0, first), packet(17, first), *pictures]


def found(path: Path, packets: list[bytes], before: int = 0, behind: int = 0) -> tuple[list, list]:
    path.write_bytes(b"".join(bytes(before) + data + bytes(behind) for data in packets))
    places, joins = breaks(path, FILM)
    return (places // (188 + before + behind)).tolist(), joins.tolist()


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


def test_counters_go_on_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timeviper_fast.video.continuity._CHUNK_PACKETS", 7)
    assert found(tmp_path / "film.ts", film() + film()) == ([44], [True])
    packets = film()
    del packets[21]
    assert found(tmp_path / "film.ts", packets) == ([21], [False])


def test_a_loss_damages_the_packet_before_it() -> None:
    places, keys = np.array([0, 188, 188, 376, 564]), np.array([True, False, False, False, True])
    flags = np.array([False, False, False, True, False])
    joined = Breaks(np.array([564]), np.array([True]))
    damaged, joins = marked(flags, places, keys, joined)
    assert not damaged.any()
    assert np.flatnonzero(joins).tolist() == [4]
    # a stream does not begin with a picture that refers to others
    damaged, joins = marked(flags, places, keys & ~keys, joined)
    assert damaged.tolist() == [False, False, False, True, False]
    assert not joins.any()
    # two packets begin at one place
    damaged, joins = marked(flags, places, keys, Breaks(np.array([376]), np.array([False])))
    assert damaged.tolist() == [False, True, True, True, False]
    assert not joins.any()
    damaged, _ = marked(flags & False, places, keys, Breaks(np.array([0]), np.array([False])))
    assert not damaged.any()
    # behind the last picture
    damaged, _ = marked(flags & False, places, keys, Breaks(np.array([752]), np.array([True])))
    assert damaged.tolist() == [False, False, False, False, True]
