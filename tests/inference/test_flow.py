"""Rows by layer, and the layer where questions begin to matter."""

from __future__ import annotations

import pytest

from tests.inference.opening import SCHEDULES, config_of, opened
from timeviper_fast.inference.flow import asking_layer, flow


@pytest.mark.parametrize("name", SCHEDULES)
def test_rows_are_those_that_pass(name):
    config, before, frames = config_of(name), 3, 5
    rows, video = flow(config, before, frames), opened(config, before, frames)
    asks = rows.asking < config.backbone.num_hidden_layers
    assert rows.rows(0) == video.segment.length - (
        rows.below[0].dropped if 0 in stages(rows) else 0
    )
    assert rows.entering == (sum(map(len, video.rows)) - before if asks else 0)
    assert [stage.dropped for stage in rows.below] == [
        record.tokens_before - record.tokens_after for record in video.records
    ]


def stages(rows):
    return [stage.stage.layer for stage in rows.below]


def test_the_asking_layer_is_that_of_the_first_stage_by_attention():
    layers = {name: asking_layer(config_of(name)) for name in SCHEDULES}
    assert layers == {
        "none": 12,
        "shipped": 8,
        "two before": 8,
        "asks early": 3,
        "uniform alone": 12,
        "keeps nothing": 8,
        "content first": 8,
        "content alone": 12,
        "qwen2": 4,
        "qwen2 raw": 4,
    }
