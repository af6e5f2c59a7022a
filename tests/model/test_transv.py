"""The stages of TransV alone, against upstream's own code."""

from __future__ import annotations

import pytest
import torch

from tests.goldens import golden, manifest
from tests.tiny import TINY
from timeviper_fast.config import CompressionStage
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.nemotron_h import Attention
from timeviper_fast.model.transv import TransV

STAGES = (CompressionStage(0, "uniform", 0.5), CompressionStage(1, "attention", 0.2))


@torch.no_grad()
@pytest.mark.parametrize("case", manifest("transv")["cases"], ids=lambda case: case["key"])
def test_transfer(case):
    data, key = golden("transv"), case["key"]
    number = int(key[-1])
    stage = TransV(STAGES[number], TINY)
    weights = {n: data[f"merge_modules.{number}.{n}"] for n in stage.state_dict() if n != "alpha"}
    stage.load_state_dict({**weights, "alpha": data["alpha"][number]})
    attention = Attention(TINY)
    block = {n: data[f"attn_block1.{n}"] for n in attention.state_dict()}
    attention.load_state_dict(block)
    hidden = data[f"{key}.features_in"]
    span = VisualSpan(case["vision_start"], case["vision_end"] - case["vision_start"])
    original = span.length if number == 0 else golden_original(case)
    segment = Segment(hidden.shape[1], span, vision_tokens=original)
    out, [after], [record] = stage(hidden, (segment,), attention)
    assert torch.equal(record.kept[0].int() + span.start, data[f"{key}.kept_abs"])
    torch.testing.assert_close(out, data[f"{key}.features_out"], rtol=0, atol=2e-4)
    assert after.length == out.shape[1] == case["L_out"]


def golden_original(case):
    """The number of vision tokens before the first of the two stages."""
    first = case["key"].replace("stage1", "stage0")
    return next(
        c["vision_end"] - c["vision_start"]
        for c in manifest("transv")["cases"]
        if c["key"] == first
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "case", manifest("attention_scores")["cases"], ids=lambda case: case["key"]
)
def test_attention_stage_without_transfer(case):
    data, key = golden("attention_scores"), case["key"]
    attention = Attention(TINY)
    attention.load_state_dict({n: data[f"attn.{n}"] for n in attention.state_dict()})
    stage = TransV(CompressionStage(1, "attention", case["ratio_keep"], transfer=False), TINY)
    hidden = data[f"{key}.features"]
    segment = Segment(hidden.shape[1], VisualSpan(case["prefix"], case["vision"]))
    out, _, [record] = stage(hidden, (segment,), attention)
    assert torch.equal(record.kept[0].int(), data[f"{key}.kept_sorted"])
    torch.testing.assert_close(record.scores[0], data[f"{key}.vision_scores"], rtol=0, atol=1e-5)
    assert torch.equal(out, data[f"{key}.features_out"])
