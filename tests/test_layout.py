"""Where vision tokens lie in a sequence, in one run or several, and how many each layer sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model.common import runs_of
from timeviper_fast.config import CompressionStage
from timeviper_fast.layout import Segment, VisualSpan, tokens_before_layer, vision_after
from timeviper_fast.presets import preset


@given(frames=st.integers(0, 10_000), before=st.integers(1, 20), after=st.integers(1, 600))
def test_the_9b_schedule_counts_tokens(frames, before, after):
    config = preset("nemotron-nano-9b-v2")
    vision = frames * config.tokens_per_frame
    segment = Segment(before + vision + after, VisualSpan(before, vision))
    counts = tokens_before_layer((segment,), config.stages, 56)
    assert counts[:7] == [segment.length] * 7
    assert counts[7:39] == [before + vision // 2 + after] * 32
    assert counts[39:] == [before + int(vision * 0.1) + after] * 17


def test_touching_runs_are_one_span():
    whole = Segment(20, VisualSpan(3, 12))
    runs = [VisualSpan(3, 4), VisualSpan(7, 0), VisualSpan(7, 8)]
    assert Segment.of_runs(20, runs) == whole
    assert Segment.of_runs(20, runs).index is None


@pytest.mark.parametrize(
    ("runs", "rule"),
    [
        ([VisualSpan(4, 3), VisualSpan(5, 2)], "ascend"),
        ([VisualSpan(4, 3), VisualSpan(1, 2)], "ascend"),
        ([VisualSpan(4, 30)], "lie inside"),
    ],
)
def test_runs_that_are_none(runs, rule):
    with pytest.raises(ValueError, match=rule):
        Segment.of_runs(20, runs)


def test_a_segment_of_counts_alone_plans_like_one_with_its_index():
    mask = torch.tensor([False, True, True, False] * 6)
    segment = Segment.of_runs(24, runs_of(mask))
    counted = replace(segment, index=None)
    assert counted.after(5) == segment.after(5)
    assert counted.after(5).length == 17
    assert counted.after(5).vision_present == 5


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: Segment(5, VisualSpan(3, 4)),
            "span must lie inside the sample's 5 tokens",
        ),
        (
            lambda: Segment(5, VisualSpan(1, 2), query_from_end=2),
            "query_from_end must point at one of the 2 tokens after the span, got 2",
        ),
    ],
)
def test_sentences(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_stages_behind_a_content_stage_count_what_it_left():
    stages = (
        CompressionStage(0, "content", 1.0, transfer=False, prune=0.75),
        CompressionStage(2, "uniform", 0.55),
        CompressionStage(3, "attention", 0.3),
    )
    segment = Segment(120, VisualSpan(4, 96), frame_tokens=16)
    assert vision_after(segment, stages) == (96, 24, 13, 7)
    assert tokens_before_layer((segment,), stages, 5) == [48, 48, 37, 31, 31]


def test_frames_fill_the_vision_tokens():
    with pytest.raises(ValueError, match="frame_tokens must divide the 96 vision tokens, got 20"):
        Segment(120, VisualSpan(4, 96), frame_tokens=20)
