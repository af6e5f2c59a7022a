"""Fixtures of the server: a model with random weights, and a folder of videos."""

from __future__ import annotations

import pytest

from tests.random_model import tiny_model
from tests.serve.common import small_video
from timeviper_fast.serve.media import MediaRoot


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A folder with the videos a.mp4 to d.mp4."""
    folder = tmp_path_factory.mktemp("films")
    for seed, name in enumerate("abcd"):
        small_video(folder / f"{name}.mp4", seed)
    return folder


@pytest.fixture
def media(root):
    return MediaRoot(root, 10**6)
