"""One Mamba-2 mixer and the TransV stages alone, against upstream's own code."""

from __future__ import annotations

import pytest
import torch

from tests.model.goldens import TINY, golden, manifest
from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.cache import MambaState
from timeviper_fast.model.nemotron_h import Attention, Mamba2
from timeviper_fast.model.stack import Packing
from timeviper_fast.model.transv import TransV


@pytest.fixture
def mixer():
    shape = manifest("mamba_mixer")["config"]
    config = BackboneConfig(
        hidden_size=shape["hid"],
        pattern="M",
        mamba_num_heads=shape["heads"],
        mamba_head_dim=shape["hd"],
        n_groups=shape["G"],
        ssm_state_size=shape["N"],
        chunk_size=shape["chunk"],
    )
    data = golden("mamba_mixer")
    module = Mamba2(config)
    weights = {n.removeprefix("weight."): t for n, t in data.items() if n.startswith("weight.")}
    module.load_state_dict(weights)
    return config, module.eval(), data


@torch.no_grad()
def test_mamba_prefill_states_and_steps(mixer):
    config, module, data = mixer
    state = MambaState(2, config, None, torch.float32)
    out = module(data["input"], Packing((150,), None), state)
    torch.testing.assert_close(out, data["output"], rtol=0, atol=2e-4)
    torch.testing.assert_close(state.ssm, data["ssm_state"], rtol=0, atol=1e-4)
    torch.testing.assert_close(state.conv, data["conv_state"], rtol=0, atol=1e-4)
    steps = [module(data["step_input"][:, i : i + 1], Packing((1,), None), state) for i in range(4)]
    torch.testing.assert_close(torch.cat(steps, 1), data["step_output"], rtol=0, atol=2e-4)
    torch.testing.assert_close(state.ssm, data["ssm_state_after_steps"], rtol=0, atol=1e-4)
    torch.testing.assert_close(state.conv, data["conv_state_after_steps"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_mamba_training_and_packed(mixer):
    _, module, data = mixer
    out = module(data["input"], Packing((150,), None), None)
    torch.testing.assert_close(out, data["fused_training_output"], rtol=0, atol=2e-4)
    packing = Packing((60, 41, 49), data["packed_seq_idx"])
    out = module(data["input"][:1], packing, None)
    torch.testing.assert_close(out, data["packed_output"], rtol=0, atol=2e-4)


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
    """Vision tokens before the first of the two stages: its sequence was that much longer."""
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
