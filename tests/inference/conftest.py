"""The tiny model, and a short video to ask it about."""

from __future__ import annotations

import pytest

from tests.random_model import square_video, tiny_model
from timeviper_fast import TimeViper


@pytest.fixture(scope="module")
def model() -> TimeViper:
    return tiny_model()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "demo.mp4"
    return square_video(path, seconds=12, fps=10, height=64, width=96)
