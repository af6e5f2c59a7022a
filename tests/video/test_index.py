"""Which packets must be decoded for a frame, and which damage reaches it."""

from __future__ import annotations

import gc
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.video.common import av, numbers, pictures
from timeviper_fast.video import open_video, write_video
from timeviper_fast.video.index import Index

# two groups; packet 4 is a key frame, and packet 5 is displayed before it, after packet 3
ORDER = np.array([0, 2, 1, 3, 5, 4, 6, 7])
KEYS = np.isin(np.arange(8), [0, 4])
ALL, NONE = np.ones(8, np.bool_), np.zeros(8, np.bool_)


def damaged(packet: int) -> list[int]:
    """The positions that damage of this packet reaches."""
    unsound = Index(ORDER, KEYS, ALL, np.arange(8) == packet).unsound
    assert unsound is not None
    return np.flatnonzero(unsound).tolist()


def test_a_frame_starts_at_the_key_frame_displayed_before_it() -> None:
    index = Index(ORDER, KEYS, ALL, NONE)
    assert index.packet_of.tolist() == ORDER.tolist()
    assert index.starts(np.arange(8)).tolist() == [0, 0, 0, 0, 0, 4, 4, 4]
    (stretch,) = index.stretches([1, 4])
    assert stretch == (0, 6, [1, 4])
    assert index.unsound is None


def test_damage_reaches_all_that_is_decoded_after_it_up_to_the_next_key_frame() -> None:
    # the leading picture at position 4 refers to both groups
    assert damaged(0) == [0, 1, 2, 3, 4]
    # packet 1 is a reference of packet 2, which is displayed before it
    assert damaged(1) == [1, 2, 3, 4]
    assert damaged(2) == [1, 3, 4]
    assert damaged(4) == [4, 5, 6, 7]
    assert damaged(7) == [7]


def test_frames_before_the_first_key_frame_are_none() -> None:
    index = Index(ORDER, np.arange(8) == 4, ALL, NONE)
    assert index.skipped == 5
    assert index.packet_of.tolist() == [4, 6, 7]
    assert index.position_of.tolist()[4:] == [0, -1, 1, 2]


def test_a_hidden_key_frame_still_starts_a_group() -> None:
    index = Index(ORDER, KEYS, np.arange(8) != 4, NONE)
    assert index.packet_of.tolist() == [0, 2, 1, 3, 5, 6, 7]
    assert index.starts(np.arange(7)).tolist() == [0, 0, 0, 0, 0, 4, 4]


UNIT, HOUR = 125, 90_000


def an_hour(path: Path) -> None:
    """The packets of five seconds, again and again for an hour, at 25 frames per second."""
    unit = path.with_name("unit.mp4")
    write_video(unit, pictures(UNIT), 25, options={"bf": "2", "g": "25"})
    options = {"use_editlist": "0"} if path.suffix == ".mp4" else {}
    with av.open(str(unit)) as old, av.open(str(path), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        frame = round(Fraction(1, 25) / packets[0].time_base)
        rows = [(bytes(p), p.pts // frame, p.dts // frame, p.is_keyframe) for p in packets]
        for number in range(HOUR):
            data, pts, dts, key = rows[number % UNIT]
            packet = av.Packet(data)
            base = number // UNIT * UNIT
            packet.pts, packet.dts, packet.time_base = base + pts, base + dts, Fraction(1, 25)
            packet.is_keyframe, packet.stream = key, stream
            new.mux(packet)


@pytest.mark.long
@pytest.mark.parametrize(("suffix", "seconds"), [("mp4", 1.0), ("mkv", 5.0), ("ts", 5.0)])
def test_an_hour_is_indexed_in_short_time_and_little_memory(
    tmp_path: Path, suffix: str, seconds: float
) -> None:
    """Seconds of the processor; bytes that stay, and the most while the file is opened."""
    if suffix == "mp4" and int(av.__version__.split(".")[0]) < 17:
        pytest.skip("older PyAV shows no table")
    path = tmp_path / f"hour.{suffix}"
    an_hour(path)
    open_video(tmp_path / "unit.mp4")
    calls: list[tuple[str, int, int]] = []
    begin = time.process_time()
    video = open_video(path, progress=lambda *done: calls.append(done))
    spent = time.process_time() - begin
    assert (video.num_frames, video.lost_frames, video.notes) == (HOUR, 0, ())
    assert spent < seconds
    assert len(calls) >= (1 if suffix == "mp4" else HOUR // 2048)
    wanted = [0, 40_003, HOUR - 1]
    assert numbers(video.frames(wanted)) == [position % UNIT for position in wanted]
    gc.collect()
    tracemalloc.start()
    try:
        again = open_video(path)
        gc.collect()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert again.num_frames == HOUR
    assert held < 40 * HOUR
    assert peak < 300 * HOUR
    print(
        f"{suffix}: {spent:.2f} s, {held / HOUR:.0f} bytes a frame held, {peak / HOUR:.0f} at most"
    )
