"""The tiny model as a preset, for runs that name their model."""

from __future__ import annotations

import pytest

from tests.training.common import CONFIG
from timeviper_fast import presets


@pytest.fixture(autouse=True, scope="module")
def _tiny_preset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny-for-tests", CONFIG)
        yield
