"""Bounds for videos that strangers bring."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video, write_video
from timeviper_fast.video.bound import bounded


@pytest.fixture
def film(tmp_path):
    """A film of 5 pictures of 64 x 48 pixels."""
    write_video(tmp_path / "film.mp4", np.zeros((5, 48, 64, 3), np.uint8), 1)
    return tmp_path / "film.mp4"


def listing(data: bytes, samples: int) -> bytes:
    """A film whose table says that it has so many samples of one byte, in one chunk and one run."""
    changed = bytearray(data)
    for kind, skipped, fields in (
        (b"stsz", 8, (1, samples)), (b"stsc", 12, (1, samples, 1)), (b"stts", 12, (samples, 1)),
    ):  # fmt: skip
        at = data.index(kind) + skipped
        changed[at : at + 4 * len(fields)] = struct.pack(f">{len(fields)}I", *fields)
    return bytes(changed)


def test_larger_pictures_are_refused_before_they_are_decoded(film, tmp_path):
    with bounded(48 * 64), open_video(film) as video:
        assert len(next(video.frames([0, 4], 2, ahead=1)).rgb) == 2
    Image.new("RGB", (64, 48)).save(tmp_path / "one.png")
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    for name in ("film.mp4", "one.png", "two.gif"):
        path = tmp_path / name
        rule = "its pictures have 64 x 48 pixels, more than 3,071"
        with bounded(48 * 64 - 1):
            with pytest.raises(VideoError, match=f"{name}: {rule}"):
                open_video(path)
            with pytest.raises(VideoError, match=f"^bytes: {rule}"):
                open_video(path.read_bytes())
        assert open_video(path).size == (48, 64)


def test_pictures_that_grow_midway_are_not_decoded(tmp_path):
    """Two pieces of a transport stream, the second with larger pictures; the head tells the first."""
    parts = []
    for side in (32, 128):
        write_video(tmp_path / "part.ts", np.zeros((6, side, side, 3), np.uint8), 1)
        parts.append((tmp_path / "part.ts").read_bytes())
    (tmp_path / "film.ts").write_bytes(b"".join(parts))
    with open_video(tmp_path / "film.ts", on_error="use") as video:
        sizes = {frames.rgb.shape[1] for frames in video.frames(range(video.num_frames), ahead=1)}
    assert 128 in sizes
    with bounded(64 * 64), open_video(tmp_path / "film.ts", on_error="use") as video:
        frames = list(video.frames(range(video.num_frames), ahead=1))
        assert {batch.rgb.shape[1] for batch in frames} == {32}
        assert video.lost_frames > 0


def test_tables_of_too_many_samples_are_refused_before_ffmpeg_reads_them(film, tmp_path):
    data = film.read_bytes()
    bomb = tmp_path / "bomb.mp4"
    for samples in (10_000_001, 2**32 - 1):
        bomb.write_bytes(listing(data, samples))
        with bounded(10**6), pytest.raises(VideoError, match=r"lists more than 10,000,000 samples"):
            open_video(bomb)
    # sound without compression lists each instant: FFmpeg makes no entry for those
    sound = listing(data, 10_000_001).replace(b"vide", b"soun")
    bomb.write_bytes(sound)
    with (
        bounded(10**6),
        pytest.raises(VideoError, match=r"it has no video stream|cannot be opened"),
    ):
        open_video(bomb)
    # such a table outside of a track may count to any of them
    bomb.write_bytes(sound + struct.pack(">I4s5I", 28, b"stts", 0, 1, 1, 2, 0))
    with bounded(10**6), pytest.raises(VideoError, match="lists more than"):
        open_video(bomb)


def test_fragments_count_too(film):
    data = film.read_bytes()
    run = struct.pack(">I4sII", 16, b"trun", 0, 10_000_001)
    fragment = struct.pack(">I4sI4s", 16 + len(run), b"moof", 8 + len(run), b"traf") + run
    film.write_bytes(data + fragment)
    with bounded(10**6), pytest.raises(VideoError, match="lists more than"):
        open_video(film)


def test_long_animations_tell_how_far_they_are(tmp_path):
    frames = [Image.new("RGB", (8, 8), (90 * n, 0, 0)) for n in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    told = []
    open_video(tmp_path / "a.gif", progress=lambda *numbers: told.append(numbers))
    assert told == [("scan", 1, 3), ("scan", 2, 3), ("scan", 3, 3)]


def test_nothing_is_refused_without_a_bound(film):
    with bounded(1):
        pass
    with open_video(film) as video:
        assert torch.equal(video.seconds, torch.arange(5.0, dtype=torch.float64))
