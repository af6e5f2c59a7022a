"""A video is written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
