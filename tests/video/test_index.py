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


UNIT, TIMES = 125, 7200
FRAMES = UNIT * TIMES  # of ten hours, at 25 per second


def unit(folder: Path) -> Path:
    """Five seconds, with reordered frames."""
    path = folder / "unit.mp4"
    write_video(path, pictures(UNIT), 25, options={"bf": "2", "g": "25"})
    return path


def muxed(path: Path) -> None:
    """The packets of five seconds, again and again for ten hours."""
    with av.open(str(unit(path.parent))) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        frame = round(Fraction(1, 25) / packets[0].time_base)
        rows = [(bytes(p), p.pts // frame, p.dts // frame, p.is_keyframe) for p in packets]
        for number in range(FRAMES):
            data, pts, dts, key = rows[number % UNIT]
            packet = av.Packet(data)
            base = number // UNIT * UNIT
            packet.pts, packet.dts, packet.time_base = base + pts, base + dts, Fraction(1, 25)
            packet.is_keyframe, packet.stream = key, stream
            new.mux(packet)


def listed(path: Path) -> None:
    """An mp4 file of five seconds whose table lists its samples again and again for ten hours."""
    data = unit(path.parent).read_bytes()
    start = data.rindex(b"moov") - 4
    path.write_bytes(data[:start] + repeated(data[start:]))


# boxes that hold boxes; where others have a duration, and the ticks of five seconds there; where
# tables begin, and the numbers in a row. One chunk has all samples of five seconds.
HOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
DURATIONS = {b"mvhd": (16, 5000), b"tkhd": (20, 5000), b"elst": (8, 5000), b"mdhd": (16, 64_000)}
TABLES = {b"stts": (8, 2), b"ctts": (8, 2), b"stsz": (12, 1), b"stss": (8, 1), b"stco": (8, 1)}


def repeated(data: bytes) -> bytes:
    """The boxes, with their durations and tables repeated `TIMES` times."""
    made = b""
    while data:
        size, kind = int.from_bytes(data[:4], "big"), data[4:8]
        content, data = data[8:size], data[size:]
        if kind in HOLDERS:
            content = repeated(content)
        elif kind in DURATIONS:
            at, ticks = DURATIONS[kind]
            longer = int.from_bytes(content[at : at + 4], "big") + ticks * (TIMES - 1)
            content = content[:at] + longer.to_bytes(4, "big") + content[at + 4 :]
        elif kind in TABLES:
            at, width = TABLES[kind]
            table = np.frombuffer(content[at:], ">u4").reshape(-1, width)
            rows = np.tile(table, (TIMES, 1))
            if kind == b"stss":
                # the numbers of key frames
                rows += np.repeat(np.arange(TIMES) * UNIT, len(table))[:, None].astype(">u4")
            content = content[: at - 4] + len(rows).to_bytes(4, "big") + rows.tobytes()
        made += (8 + len(content)).to_bytes(4, "big") + kind + content
    return made


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("suffix", "seconds"),
    [("mp4", 1.0), pytest.param("mkv", 25.0, marks=LONG), pytest.param("ts", 25.0, marks=LONG)],
)
def test_ten_hours_are_indexed_in_short_time_and_little_memory(
    tmp_path: Path, suffix: str, seconds: float
) -> None:
    """Seconds of the processor; bytes that stay, and the most while the file is opened."""
    if suffix == "mp4" and int(av.__version__.split(".")[0]) < 17:
        pytest.skip("older PyAV shows no table")
    path = tmp_path / f"long.{suffix}"
    (listed if suffix == "mp4" else muxed)(path)
    open_video(tmp_path / "unit.mp4")
    calls: list[tuple[str, int, int]] = []
    begin = time.process_time()
    video = open_video(path, progress=lambda *done: calls.append(done))
    spent = time.process_time() - begin
    assert (video.num_frames, video.lost_frames, video.notes) == (FRAMES, 0, ())
    assert video.seconds[-1] - video.seconds[0] == pytest.approx(36_000 - 1 / 25)
    assert spent < seconds
    assert len(calls) >= (1 if suffix == "mp4" else FRAMES // 2048)
    wanted = [0, 400_003, FRAMES - 1]
    assert numbers(video.frames(wanted)) == [position % UNIT for position in wanted]
    del video
    gc.collect()
    tracemalloc.start()
    try:
        again = open_video(path)
        gc.collect()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert again.num_frames == FRAMES
    assert held < 40 * FRAMES
    assert peak < 300 * FRAMES
    print(
        f"{suffix}: {spent:.2f} s, {held / FRAMES:.0f} bytes a frame held, "
        f"{peak / FRAMES:.0f} at most"
    )
