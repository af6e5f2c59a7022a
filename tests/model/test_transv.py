"""The stages of TransV alone, against upstream's own code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.goldens import golden, manifest
from tests.model.common import flash_backbone
from tests.tiny import TINY
from timeviper_fast.config import CompressionStage
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.nemotron_h import Attention, RMSNorm
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
    out, [after], [record] = stage(hidden, (segment,), attention, nn.Identity())
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


def test_spacing_of_videochat_flash():
    """Its stages and ours differ at some lengths; each keeps its own rule."""
    data, config = golden("vcf_uniform_indices"), flash_backbone().config
    differing = 0
    for row in manifest("vcf_uniform_indices")["rows"]:
        kept = {}
        for spacing in ("linspace", "exact"):
            keep = row["keep"] / row["visual"] or 1e-9
            stage = TransV(CompressionStage(0, "uniform", keep, False, "normed", spacing), config)
            hidden, span = torch.zeros(1, row["visual"] + 3, 2), VisualSpan(2, row["visual"])
            segments = (Segment(row["visual"] + 3, span),)
            _, _, [record] = stage(hidden, segments, nn.Identity(), nn.Identity())
            kept[spacing] = record.kept[0]
        assert torch.equal(kept["linspace"].int(), data[row["tensor"]])
        moved = int((kept["linspace"] != kept["exact"]).sum())
        assert moved == row["positions_where_exact_floor_differs"]
        differing += moved > 0
    assert differing >= 5


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
    out, _, [record] = stage(hidden, (segment,), attention, nn.Identity())
    assert torch.equal(record.kept[0].int(), data[f"{key}.kept_sorted"])
    torch.testing.assert_close(record.scores[0], data[f"{key}.vision_scores"], rtol=0, atol=1e-5)
    assert torch.equal(out, data[f"{key}.features_out"])


@torch.no_grad()
def test_a_large_stream_is_chosen_from_by_its_normed_scores():
    """Raw scores of a stream of rms 100 underflow to 0 and ties decide; normed ones rank it."""
    attention, norm, hidden = Attention(TINY), RMSNorm(TINY.hidden_size, 1e-5), 100 * _random()
    segment = Segment(hidden.shape[1], VisualSpan(2, 60))
    weights = (attention.q_proj(norm(hidden[:, -1:])), attention.k_proj(norm(hidden)))
    q, k = (x.unflatten(-1, (-1, TINY.head_dim)).transpose(1, 2) for x in weights)
    truth = (q @ k.mT / TINY.head_dim**0.5).softmax(-1).mean(1)[:, 0, 2:62]
    records = {}
    for score in ("raw", "normed"):
        stage = TransV(CompressionStage(1, "attention", 0.2, transfer=False, score=score), TINY)
        records[score] = stage(hidden, (segment,), attention, norm)[2][0]
    torch.testing.assert_close(records["normed"].scores, truth, rtol=1e-4, atol=1e-6)
    assert torch.equal(records["normed"].kept[0], truth[0].topk(12).indices.sort().values)
    assert (records["raw"].scores == 0).float().mean() > 0.5


def _random() -> torch.Tensor:
    return torch.randn(1, 64, TINY.hidden_size)
