"""A video is written whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.video.common import picture, pictures
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video, write_video


def test_write_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield from pictures(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", interrupted())
    odd = [np.zeros((33, 32, 3), np.uint8)]
    with pytest.raises(VideoError, match=r"one even height and width, got shape \(33, 32, 3\)"):
        write_video(tmp_path / "a.mp4", odd)
    changing = [picture(0), picture(0)[:8]]
    with pytest.raises(VideoError, match=r"one even height and width, got shape \(8, 64, 3\)"):
        write_video(tmp_path / "a.mp4", changing)
    with pytest.raises(VideoError, match="at least one frame, got none"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(VideoError, match=r"a.mp4: it cannot be written \(.*nonesuch"):
        write_video(tmp_path / "a.mp4", pictures(2), codec="nonesuch")
    with pytest.raises(VideoError, match=r"a.what: it cannot be written"):
        write_video(tmp_path / "a.what", pictures(2))
    assert list(tmp_path.iterdir()) == []
    write_video(tmp_path / "a.mp4", (torch.from_numpy(p) for p in pictures(5)), 10)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert open_video(tmp_path / "a.mp4").fps == 10


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"seconds": [0]}, "seconds must have one time for each frame, got 'fewer times'"),
        ({"seconds": [0, 1, 2, 3]}, "seconds must have one time for each frame, got 'more times'"),
        ({"seconds": [0, 2, 1]}, "seconds must be finite numbers that ascend, got 1"),
        ({"seconds": [0, 0, 1]}, "seconds must be finite numbers that ascend, got 0"),
        ({"seconds": [0, float("nan"), 1]}, "seconds must be finite numbers that ascend, got nan"),
        ({"seconds": 3}, "seconds must be a sequence or an iterator, got 3"),
        ({"fps": 0}, "fps must be a finite number above 0, got 0"),
        ({"fps": Fraction(-1, 3)}, "fps must be a finite number above 0"),
        ({"fps": None}, "fps must be a finite number above 0, got None"),
        ({"options": {"g": 25}}, "options must be a dict of strings"),
        ({"frames": None}, "frames must be a sequence or an iterator, got None"),
        ({"path": None}, "path must be the name of a file, got None"),
    ],
)
def test_a_wrong_argument_is_named_and_writes_nothing(
    tmp_path: Path, how: dict[str, Any], words: str
) -> None:
    given = {"path": tmp_path / "a.mp4", "frames": pictures(3)} | how
    with pytest.raises(ValueError, match="write_video: " + re.escape(words)):
        write_video(**given)
    assert list(tmp_path.iterdir()) == []


def test_times_closer_than_a_tick_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds must be finite numbers that ascend"):
        write_video(tmp_path / "a.mp4", pictures(2), seconds=[0, 1e-6])
