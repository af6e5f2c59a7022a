"""The demo's video."""

from __future__ import annotations

import pytest

from timeviper_fast.demo import write_demo_video


def test_a_demo_video_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"write_demo_video: .* got 0 s, 24 fps, 360 x 640"):
        write_demo_video(tmp_path / "demo.mp4", seconds=0)
