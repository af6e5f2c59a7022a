"""The loop through layers and stages: it may stop before a stage and go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.model.common import random_model, runs_of
from tests.tiny import TINY
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.cache import HybridCache


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("chunk", [None, 4])
def test_a_run_that_stops_before_a_stage_goes_on_to_the_same_end(stop, interleaved, chunk):
    mask = torch.tensor([False] * 2 + [True] * 6 + [False] * interleaved + [True] * 9 + [False] * 4)
    segment = Segment.of_runs(len(mask), runs_of(mask))
    model = random_model()
    x = torch.randn(1, len(mask), TINY.hidden_size, dtype=torch.float64)

    def cache() -> HybridCache:
        return HybridCache(TINY, [len(mask)] * TINY.num_hidden_layers, dtype=torch.float64)

    with torch.no_grad():
        whole = model.run(x, (segment,), cache=cache(), chunk=chunk)
        states = cache()
        first = model.run(x, (segment,), cache=states, chunk=chunk, stop_stage=stop)
        assert len(first.records) == stop
        before = first.hidden.clone()
        rest = model.run(first.hidden, first.segments, cache=states, chunk=chunk, start_stage=stop)
    assert torch.equal(rest.hidden, whole.hidden)
    assert torch.equal(first.hidden, before)
    for [got], [want] in zip(first.records + rest.records, whole.records):
        assert torch.equal(got.kept, want.kept)


@pytest.mark.parametrize(
    "part", [{"stop_stage": 4}, {"start_stage": -1}, {"start_stage": 2, "stop_stage": 1}]
)
def test_stages_that_are_none(part):
    model = random_model()
    with pytest.raises(ValueError, match="must name stages in order, 0 to 3, got"):
        model.run(torch.zeros(1, 4, TINY.hidden_size, dtype=torch.float64), **part)


def test_a_segment_that_only_counts_is_refused():
    """Its text between the runs would be dropped as if it were vision."""
    segment = Segment.of_runs(9, [VisualSpan(1, 2), VisualSpan(5, 2)])
    x = torch.zeros(1, 9, TINY.hidden_size, dtype=torch.float64)
    with pytest.raises(ValueError, match="segments must say where their vision tokens lie"):
        random_model().run(x, (replace(segment, index=None),))
