"""Timelines are looked up once, cached by the file's version, and replaced when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dataset.common import film
from timeviper_fast.dataset import media
from timeviper_fast.dataset.media import MediaIndex
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were opened, in order."""
    paths: list[Path] = []

    def counting(path: Path) -> object:
        paths.append(path)
        return open_video(path)

    monkeypatch.setattr(media, "open_video", counting)
    return paths


def test_a_timeline_is_that_of_the_video(tmp_path: Path, opened: list[Path]) -> None:
    path = film(tmp_path / "a.mp4", 5)
    for folder in (None, tmp_path / "kept", tmp_path / "kept"):
        index = MediaIndex(folder)
        for _ in range(2):
            seconds, fps, duration = index.timeline(path)
            assert (seconds.tolist(), fps, duration) == ([0.0, 0.5, 1.0, 1.5, 2.0], 2.0, 2.5)
    assert opened == [path] * 2


def test_a_changed_video_and_a_damaged_entry_are_looked_up_again(
    tmp_path: Path, opened: list[Path]
) -> None:
    path = film(tmp_path / "a.mp4", 5)
    MediaIndex(tmp_path / "kept").timeline(path)
    (entry,) = (tmp_path / "kept").rglob("*.npz")
    whole = entry.read_bytes()
    for damaged in (b"", b"x", whole[:-9], whole[:60] + b"\xff" * 20 + whole[80:]):
        entry.write_bytes(damaged)
        assert MediaIndex(tmp_path / "kept").timeline(path).duration == 2.5
        assert entry.read_bytes() == whole
    film(path, 6)
    assert MediaIndex(tmp_path / "kept").timeline(path).duration == 3.0
    assert opened == [path] * 6


def test_a_scan_opens_each_file_once_and_says_what_is_wrong(
    tmp_path: Path, opened: list[Path]
) -> None:
    good, bad, none = film(tmp_path / "a.mp4", 5), tmp_path / "b.mp4", tmp_path / "c.mp4"
    bad.write_text("no video")
    index = MediaIndex()
    found = dict(index.scan([good, bad, good, none]))
    assert sorted(opened) == [good, bad]
    assert list(found) == [good, bad, none]
    assert found[good].duration == 2.5
    assert "b.mp4: it " in found[bad]
    assert found[none] == f"{none}: no such file or directory"
    assert dict(index.scan([good]))[good].duration == 2.5
    assert len(opened) == 2
    with pytest.raises(VideoError):
        index.timeline(bad)
    with pytest.raises(FileNotFoundError):
        index.timeline(none)


def test_pictures_and_animations(tmp_path: Path, opened: list[Path]) -> None:
    frames = [Image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (0, 200)]
    frames[0].save(tmp_path / "a.png")
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:], duration=500)
    (tmp_path / "c.png").write_bytes(b"no picture")
    index = MediaIndex()
    assert index.timeline(tmp_path / "a.png").seconds.tolist() == [0.0]
    assert opened == []
    assert index.timeline(tmp_path / "b.gif").seconds.tolist() == [0.0, 0.5]
    with pytest.raises(VideoError, match=r"c\.png"):
        index.timeline(tmp_path / "c.png")


def test_the_memory_is_bounded(tmp_path: Path, opened: list[Path]) -> None:
    index, paths = MediaIndex(memory=5), [film(tmp_path / f"{name}.mp4", 2) for name in "abc"]
    for path in (*paths[:2], *paths[:2], paths[2], paths[1], paths[0]):
        index.timeline(path)
    assert opened == [*paths, paths[0]]
    # a video above the memory limit is kept until the next look-up
    for _ in range(2):
        MediaIndex(memory=1).timeline(paths[0])
    assert len(opened) == 6
