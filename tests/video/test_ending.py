"""A file is cut off if it is shorter than it says, not if another stream is longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.video.common import pictures
from timeviper_fast.video import write_video
from timeviper_fast.video.ending import Declared, declared_bytes, missing_frames

CODECS = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "avi": "mpeg4", "wmv": "wmv2"}


@pytest.mark.parametrize("suffix", CODECS)
def test_a_file_states_its_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film.{suffix}"
    write_video(path, pictures(20), 25, codec=CODECS[suffix])
    data = path.read_bytes()
    assert declared_bytes(path) == len(data)
    path.write_bytes(data[: len(data) * 2 // 3])
    told = declared_bytes(path)
    assert told is not None
    assert told > len(data) * 2 // 3


def test_a_transport_stream_states_none(tmp_path: Path) -> None:
    path = tmp_path / "film.ts"
    write_video(path, pictures(20), 25)
    assert declared_bytes(path) is None


def test_the_missing_frames_are_estimated(tmp_path: Path) -> None:
    whole, cut, live = (tmp_path / name for name in ("whole.avi", "cut.avi", "live"))
    whole.write_bytes(b"RIFF" + (92).to_bytes(4, "little") + bytes(92))
    cut.write_bytes(whole.read_bytes()[:50])
    live.write_bytes(bytes(50))
    # another length than that of the frames does not make a whole file a cut one
    assert missing_frames(whole, Declared(0, 30.0, 10.0), 100, 10.0, False) == 0
    assert missing_frames(whole, Declared(0, 30.0, 10.0), 100, 10.0, True) == 201
    assert missing_frames(cut, Declared(100, 10.0, 10.0), 80, 8.0, False) == 21
    # by bytes, where the container states no length of the video
    assert missing_frames(cut, Declared(0, None, 10.0), 50, 5.0, False) == 51
    assert missing_frames(live, Declared(0, 10.5, 10.0), 100, 10.0, False) == 0
    assert missing_frames(live, Declared(0, 20.0, 10.0), 100, 10.0, False) == 101
