"""The window counts the tokens that reach attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.inference.common import CONFIG, build, prompt
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.generate import prefill
from timeviper_fast.inference.plan import model_facts
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.presets import preset
from timeviper_fast.stops import StopWatch


def test_the_window_counts_what_reaches_attention():
    model = build(
        (CompressionStage(2, "uniform", 0.1),), replace(CONFIG, max_position_embeddings=32)
    )
    segment = Segment(104, VisualSpan(2, 100))
    prefill(model, prompt(104), segment, max_new_tokens=18)
    with pytest.raises(
        ValueError,
        match=r"window of 32 tokens, got 14 at its attention layers \(of 104 in the prompt\) \+ 19",
    ):
        prefill(model, prompt(104), segment, max_new_tokens=19)


def test_stages_before_qwen2s_layers_are_named_as_its_users_count():
    """Its card says 4 and 18; a block of it is two layers of ours."""
    stages = (
        CompressionStage(8, "uniform", 0.75, transfer=False),
        CompressionStage(36, "attention", 0.25, transfer=False, score="normed"),
    )
    facts = model_facts(replace(preset("timeviper-qwen2.5-7b"), stages=stages))
    assert facts["stages"] == (
        "before block 4: uniform, keep 0.75; "
        "before block 18: attention, keep 0.25 of the normed stream"
    )
    assert facts["llm_parameters"] == 7_615_616_512
    assert facts["layers"] == "0 Mamba-2, 28 attention, 28 MLP"


def test_the_watch_names_stages_as_users_count():
    stages = (CompressionStage(2, "uniform", 0.5, transfer=False),)
    config = replace(CONFIG, family="qwen2", pattern="*-" * 2, rope_theta=1e4)
    for built, name in ((CONFIG, "layer 2"), (config, "block 1")):
        watch = StopWatch(torch.device("cpu"))
        segment = Segment(14, VisualSpan(2, 10))
        model = build(stages, built)
        prefill(model, prompt(14), segment, max_new_tokens=1, watch=watch)
        assert f"prefill: uniform stage before {name}" in watch.stops
