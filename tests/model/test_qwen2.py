"""Qwen2's layers in our stack, against VideoChat-Flash's own code and transformers' Qwen2."""

from __future__ import annotations

import pytest
import torch

from tests.goldens import golden, manifest
from tests.model.common import flash_backbone, flash_stages
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.layout import Segment, VisualSpan

RUNS = (
    "vcf_llm_nodrop",
    "vcf_llm_uniform",
    "vcf_llm_attention",
    "vcf_llm_uniform0_attention",
    "vcf_llm_uniform1_attention",
)
HIDDEN = {"rtol": 0, "atol": 2e-4}
LOGITS = {"rtol": 0, "atol": 1e-4}
SCORES = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(params=RUNS)
def run(request):
    """(golden tensors, model, segment) of one run of VideoChat-Flash."""
    about = manifest(request.param)
    span = VisualSpan(about["visual_start"], about["visual_tokens"])
    model = flash_backbone(flash_stages(about))
    return golden(request.param), model, Segment(about["prompt_length"], span)


def listen(model):
    """What enters each of Qwen2's layers from now on: [(hidden, Rotary)], the layers in turn."""
    entered = []
    for layer in model.layers[::2]:
        layer.register_forward_pre_hook(lambda _, args: entered.append((args[0], args[1].rotary)))
    return entered


def assert_positions(rotary, positions):
    """Channel 0 of a head turns by the position itself, in radians."""
    angle = positions.flatten().double()
    torch.testing.assert_close(rotary.cos[:, 0].double(), angle.cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(rotary.sin[:, 0].double(), angle.sin(), rtol=0, atol=1e-5)


def test_every_layer_and_stage(run):
    data, model, segment = run
    entered = listen(model)
    with torch.no_grad():
        hidden, records = model(data["inputs_embeds"], (segment,))
    for i, (x, rotary) in enumerate(entered):
        torch.testing.assert_close(x, data[f"prefill.hidden.layer{i}"], **HIDDEN)
        assert_positions(rotary, data[f"prefill.position_ids.layer{i}"])
    torch.testing.assert_close(hidden, data["prefill.hidden.final"], **HIDDEN)
    torch.testing.assert_close(model.logits(hidden), data["prefill.logits"], **LOGITS)
    assert len(records) == len(model.stages)
    for i, [record] in enumerate(records):
        assert torch.equal(record.kept[0], data[f"stage{i}.kept_of_visual"])
        if record.scores is not None:
            torch.testing.assert_close(record.scores, data[f"stage{i}.scores"], **SCORES)


@pytest.mark.parametrize("chunk", [None, 7])
def test_prefill_and_greedy_decode(run, chunk):
    data, model, segment = run
    read = prefill(model, data["inputs_embeds"], segment, max_new_tokens=6, chunk=chunk)
    entered = listen(model)
    logits: list[torch.Tensor] = []
    tokens = torch.cat(list(decode(model, read, max_new_tokens=6, on_logits=logits.append)))
    assert tokens.tolist() == data["generated"][0].tolist()
    torch.testing.assert_close(torch.cat(logits), data["decode.logits"], **LOGITS)
    states = read.cache.layers[::2]
    assert [state.length for state in states] == data["kv_lengths_after_decode"].tolist()
    layers = len(states)
    for n, (x, rotary) in enumerate(entered):
        step, layer = divmod(n, layers)
        torch.testing.assert_close(x[0, 0], data["decode.hidden_in"][step, layer], **HIDDEN)
        assert_positions(rotary, data["decode.position_ids"][step, layer])
    assert step == len(logits) - 2
    for i, state in enumerate(states):
        if f"cache.layer{i}.k" in data:
            for name, kept in (("k", state.key), ("v", state.value)):
                theirs = data[f"cache.layer{i}.{name}"].transpose(1, 2)
                torch.testing.assert_close(kept[:, : state.length], theirs, **HIDDEN)


def test_each_row_of_a_batch_chooses_for_itself():
    data, about = golden("vcf_llm_batch"), manifest("vcf_llm_batch")
    model = flash_backbone(flash_stages(about))
    first, count = about["visual_start"], about["visual_tokens"]
    segment = Segment(data["inputs_embeds"].shape[1], VisualSpan(first, count))
    read = prefill(model, data["inputs_embeds"], segment, max_new_tokens=3)
    torch.testing.assert_close(read.logits, data["prefill.logits"], **LOGITS)
    torch.testing.assert_close(read.records[1].scores, data["stage1.scores"], **SCORES)
    for i, record in enumerate(read.records):
        rows = data[f"stage{i}.kept_rows"]
        vision = rows[:, first : first + record.tokens_after] - first
        assert torch.equal(record.kept, vision)
    # upstream cannot decode such a batch; here each row goes on as it would alone
    together = torch.stack(list(decode(model, read, max_new_tokens=3)), 1)
    for row in range(2):
        alone = prefill(model, data["inputs_embeds"][row : row + 1], segment, max_new_tokens=3)
        tokens = torch.stack(list(decode(model, alone, max_new_tokens=3)), 1)
        assert torch.equal(tokens[0], together[row])
