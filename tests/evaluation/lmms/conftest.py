"""The adapter's class, the embedded model, and videos, which are written once."""

from __future__ import annotations

import pytest

from tests.evaluation.lmms.common import install, videos
from timeviper_fast.embedded.models import TINY
from timeviper_fast.timeviper import TimeViper


@pytest.fixture
def adapter_class(monkeypatch):
    """`TimeViperLmms`, above the stand-in for lmms-eval."""
    return install(monkeypatch)


@pytest.fixture(scope="package")
def model():
    """The embedded model."""
    return TimeViper.from_pretrained(TINY, device="cpu")


@pytest.fixture(scope="package")
def paths(tmp_path_factory):
    return videos(tmp_path_factory.mktemp("videos"))
