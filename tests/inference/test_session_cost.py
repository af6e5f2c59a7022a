"""What a second question costs of the first, which opens the video: counted, and timed."""

from __future__ import annotations

import pytest

from tests.inference.session_cost import BEFORE, MODELS, TEXT, measure
from timeviper_fast.inference.work import open_work, question_work


@pytest.mark.parametrize(
    ("frames", "most"), [(256, 0.11), (2000, 0.08), (5000, 0.08), (8000, 0.08), (10_000, 0.08)]
)
def test_flops_of_a_second_question_of_the_9b(frames: int, most: float) -> None:
    config = MODELS["9b"]
    opened = open_work(config, BEFORE, frames).total
    second = sum(work.total for work in question_work(config, BEFORE, frames, TEXT))
    assert 0.06 < second / (opened + second) < most


def test_a_short_video_is_measured() -> None:
    row = measure(MODELS["tiny"], 8, 1)
    assert row["session_mb"] > 0
    assert 0 < row["second_over_first"] < 1


@pytest.mark.long
def test_a_second_question_takes_a_twelfth_of_the_first() -> None:
    """2,000 frames, the 9B's layers at width 128, best of three; 500 have more fixed costs."""
    row = measure(MODELS["small"], 2000, 3)
    assert row["second_over_first"] <= 0.08
    assert row["second_over_first_flops"] <= 0.08
