"""What is no video ends in one line, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.video.common import damage, pictures, sound_only
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video, write_video


def unfinished(path: Path, index_bytes: int) -> None:
    """The index of such a file is its last box; so much of it was written."""
    write_video(path, pictures(30), 25)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov") - 4 + index_bytes])


def all_zero(path: Path) -> None:
    write_video(path, pictures(3), 25, options={"g": "1"})
    for packet in range(3):
        damage(path, path, packet)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("empty.mp4", lambda p: p.write_bytes(b""), "the file is empty"),
        ("noise.mp4", lambda p: p.write_bytes(b"\x07" * 5000), "it cannot be opened as a video"),
        (
            "notes.txt",
            lambda p: p.write_text("a line of text\n" * 200),
            "it is a text file, not a video",
        ),
        ("code.py", lambda p: p.write_text("import this\n"), "it cannot be opened as a video"),
        ("sound.m4a", sound_only, r"it has no video stream \(it holds audio\)"),
        ("no_index.mp4", lambda p: unfinished(p, 0), "was probably cut off"),
        ("half_an_index.mp4", lambda p: unfinished(p, 8), "was probably cut off"),
        ("zero.mp4", all_zero, "no frame of it can be decoded"),
        ("folder", lambda p: p.mkdir(), "the directory holds no images"),
        ("bad.npy", lambda p: p.write_bytes(b"\x93NUMPY"), "it cannot be read as a NumPy file"),
        ("bad.npz", lambda p: p.write_bytes(b"PK\x03\x04no"), "it cannot be read as a NumPy file"),
        ("bad.png", lambda p: p.write_bytes(b"\x89PNG"), "no image of it can be decoded"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "use"])
def test_what_is_no_video_ends_in_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], object], words: str, on_error: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(VideoError, match=words) as refusal:
        open_video(path, on_error=on_error)
    assert str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)
