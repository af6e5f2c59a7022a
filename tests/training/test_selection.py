"""The selection loss: its value computed by hand, its gradient, and its effect."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.common import pixels, samples, tiny, turns
from timeviper_fast.dataset.sample import Sample
from timeviper_fast.model.transv import StageRecord
from timeviper_fast.training.loss import packed_forward
from timeviper_fast.training.packed import PackedModel, embed_packed
from timeviper_fast.training.selection import selection_loss


def record(layer, kept, log_scores=None):
    before = 8 if log_scores is None else len(log_scores)
    logs = None if log_scores is None else torch.tensor([log_scores])
    scores = None if logs is None else logs.exp()
    return StageRecord(layer, before, len(kept), torch.tensor([kept]), scores, logs)


def test_it_is_minus_the_logarithm_of_the_needed_frames_share():
    """Two tokens per frame; the uniform stage before it keeps tokens 0, 2, 4 and 6 of 8."""
    scores = [0.1, 0.2, 0.3, 0.1]
    stages = [[record(1, [0, 2, 4, 6])], [record(2, [2], list(map(math.log, scores)))]]
    loss = selection_loss(stages, [(1, 3)], tokens_per_clip=2)
    assert loss.item() == pytest.approx(-math.log((0.2 + 0.1) / 0.7), abs=1e-6)


def test_a_frame_of_which_no_token_is_left_does_not_count():
    logs = [math.log(0.5), math.log(0.25)]
    stages = [[record(1, [0, 2])], [record(2, [0], logs)]]
    assert selection_loss(stages, [(3,)], tokens_per_clip=2).item() == 0
    loss = selection_loss(stages, [(1, 3)], tokens_per_clip=2)
    assert loss.item() == pytest.approx(-math.log(0.25 / 0.75), abs=1e-6)


def test_samples_that_do_not_know_their_frames_are_left_out():
    logs = list(map(math.log, [0.4, 0.6]))
    stages = [[record(2, [0], logs), record(2, [0], logs)]]
    loss = selection_loss(stages, [(), (1,)], tokens_per_clip=1)
    assert loss.item() == pytest.approx(-math.log(0.6), abs=1e-6)
    assert selection_loss(stages, [(), ()], tokens_per_clip=1) is None
    assert selection_loss([[record(1, [0])]], [(0,)], tokens_per_clip=1) is None


def test_a_sample_without_a_needed_token_gives_no_gradient():
    logs = torch.zeros(1, 2, requires_grad=True)
    stage = StageRecord(2, 2, 1, torch.tensor([[0]]), logs.exp(), logs)
    selection_loss([[stage]], [(7,)], tokens_per_clip=1).backward()
    assert logs.grad.tolist() == [[0, 0]]


def test_the_logarithms_are_those_of_the_scores_that_choose():
    """With two key heads, training pairs query and key heads as inference does."""
    model = tiny(torch.float64)
    packed = packed_forward(model.backbone, *embed_packed(model, samples()), log_scores=True)
    attention = packed.records[1]
    for one in (attention[0], attention[2]):
        logs = one.log_scores.exp().float()
        torch.testing.assert_close(logs, one.scores.float(), rtol=1e-4, atol=1e-7)
    assert [one.log_scores for one in packed.records[0]] == [None] * 3


def test_training_chooses_the_tokens_that_inference_chooses():
    model = tiny()
    sample = samples()[0]
    packed = packed_forward(model.backbone, *embed_packed(model, [sample]))
    from timeviper_fast.text.prompt import build_prompt

    prompt = build_prompt(model.tokenizer, sample.messages[0]["content"])
    asked = model.generate(
        torch.tensor([prompt.before]),
        model.encode(sample.pixels),
        torch.tensor([prompt.after]),
        max_new_tokens=1,
    )
    first, second = (one[0].kept[0] for one in packed.records)
    assert torch.equal(first[second], asked.kept[0])


def test_scores_that_underflow_keep_their_logarithm():
    model = tiny()
    with torch.no_grad():
        model.backbone.layers[2].mixer.k_proj.weight.mul_(1e4)
    packed = packed_forward(model.backbone, *embed_packed(model, samples()), log_scores=True)
    one = packed.records[1][0]
    assert int((one.scores == 0).sum()) > 0
    assert bool(one.log_scores.isfinite().all())


def test_minimising_it_brings_the_needed_frame_to_the_front():
    model = tiny()
    sample = Sample(turns("Where?", "There."), pixels=pixels(8), needed=(6,))
    parameters = [*model.backbone.layers[2].mixer.parameters(), *model.projector.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    wrapper = PackedModel(model, selection_weight=1.0)
    losses = []
    for _ in range(30):
        result = wrapper([sample])
        losses.append(result.selection.item())
        optimizer.zero_grad()
        result.selection.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    last = wrapper([sample]).predicted.records
    kept = last[0][0].kept[0][last[1][0].kept[0]] // 4
    assert 6 in kept.tolist()
