"""Qwen2's layers in our stack, against VideoChat-Flash's own code and transformers' Qwen2."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import pytest
import torch

from tests.goldens import golden, manifest
from tests.model.common import flash_backbone, flash_stages, qwen2_pair
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.generate import decode, prefill
from timeviper_fast.inference.request import Sampling
from timeviper_fast.layout import Segment, VisualSpan, shorten
from timeviper_fast.model.qwen2 import Rotary
from timeviper_fast.training.loss import packed_forward, training_segment

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


@pytest.mark.usefixtures("backend")
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
    assert [state.start + state.longest for state in states] == data[
        "kv_lengths_after_decode"
    ].tolist()
    layers = len(states)
    for n, (x, rotary) in enumerate(entered):
        step, layer = divmod(n, layers)
        torch.testing.assert_close(x[0, 0], data["decode.hidden_in"][step, layer], **HIDDEN)
        assert_positions(rotary, data["decode.position_ids"][step, layer])
    assert step == len(logits) - 2
    for i, state in enumerate(states):
        if f"cache.layer{i}.k" in data:
            for name, kept in zip("kv", state.everything):
                theirs = data[f"cache.layer{i}.{name}"].transpose(1, 2)
                torch.testing.assert_close(kept, theirs, **HIDDEN)


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


SHAPES = {
    "2 key heads": {},
    "1 key head, another base": {"num_key_value_heads": 1, "rope_theta": 1e4},
    "as many key heads": {"num_key_value_heads": 4, "hidden_size": 64, "num_hidden_layers": 2},
}


@pytest.fixture(params=SHAPES)
def pair(request):
    return qwen2_pair(**SHAPES[request.param])


def words(model, length, batch=1):
    generator = torch.Generator().manual_seed(length)
    return torch.randn(batch, length, model.config.hidden_size, generator=generator)


@torch.no_grad()
def test_logits_of_transformers(pair):
    theirs, ours = pair
    x = words(ours, 300, batch=2)
    hidden, _ = ours(x)
    torch.testing.assert_close(ours.logits(hidden), theirs(inputs_embeds=x).logits, **LOGITS)


@torch.no_grad()
@pytest.mark.parametrize(("chunk", "penalty"), [(None, 1.0), (7, 1.0), (64, 1.4)])
def test_tokens_of_transformers(pair, chunk, penalty):
    theirs, ours = pair
    x = words(ours, 40, batch=2)
    options = {"do_sample": False, "repetition_penalty": penalty, "eos_token_id": None}
    asked = {"attention_mask": torch.ones(2, 40).long(), "pad_token_id": 0, "max_new_tokens": 9}
    truth = theirs.generate(inputs_embeds=x, **asked, **options)
    read = prefill(ours, x, max_new_tokens=9, chunk=chunk)
    sampling = Sampling(repetition_penalty=penalty)
    tokens = torch.stack(list(decode(ours, read, max_new_tokens=9, sampling=sampling)), dim=1)
    assert torch.equal(tokens, truth)


def test_positions_are_exact_far_away_and_in_16_bit():
    """At 160,000 tokens float32 angles are off by 0.02 at most; 16 bit ones mean nothing there."""
    config = flash_backbone().config
    x = torch.randn(1, 3, 1, config.head_dim)
    got = Rotary.of(config, [160_000], (3,), x.bfloat16())
    exact = Rotary.of(config, [160_000], (3,), x.double())
    assert got.cos.dtype == torch.float32
    torch.testing.assert_close(got.cos.double(), exact.cos, rtol=0, atol=0.02)
    turned = got.turn(x.bfloat16())
    assert turned.dtype == torch.bfloat16
    truth = exact.turn(x.bfloat16().double())
    torch.testing.assert_close(turned.double(), truth, rtol=0.02, atol=0.06)


class TimeViper:
    """TimeViper's stages around transformers' layers, written from its description.

    Scores come from the raw stream by the layer's q_proj and k_proj, biases included, without rope;
    later layers number what is left from 0.
    """

    def __init__(self, theirs, ours):
        self.model, self.stages = theirs.model, {s.stage.layer // 2: s for s in ours.transv}
        self.head, self.groups = theirs.lm_head, theirs.config.num_key_value_heads
        self.entered = [torch.empty(0)] * len(self.model.layers)
        self.kept = []

    def heads(self, x, count):
        return x.unflatten(-1, (count, -1)).transpose(1, 2)

    def attend(self, q, k, v):
        """Without a mask and without positions."""
        q = self.heads(q, q.shape[-1] // (k.shape[-1] // self.groups))
        k, v = (self.heads(t, self.groups) for t in (k, v))
        share = q.shape[1] // self.groups
        k, v = (t.repeat_interleave(share, dim=1) for t in (k, v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights

    def drop(self, h, start, count, total, stage, attention):
        keep = int(total * stage.stage.keep)
        if stage.stage.select == "uniform":
            kept = torch.tensor([i * (count - 1) // (keep - 1) for i in range(keep)])
        else:
            keys = attention.k_proj(h)
            _, weights = self.attend(attention.q_proj(h[:, -1:]), keys, keys)
            scores = weights.mean(1)[0, 0, start : start + count]
            kept = scores.topk(keep).indices.sort().values
        self.kept.append(kept)
        gone = torch.tensor(sorted(set(range(count)) - set(kept.tolist())))
        dropped, text = h[:, start + gone], h[:, start + count :]
        q, k, v = (proj(x) for proj, x in zip((stage.q_proj, stage.k_proj, stage.v_proj),
                                              (text, dropped, dropped)))  # fmt: skip
        told = text + stage.alpha.tanh() * stage.o_proj(self.attend(q, k, v)[0])
        return torch.cat([h[:, :start], h[:, start + kept], told], 1), keep

    @torch.no_grad()
    def __call__(self, h, start=0, count=0):
        """Logits of what is left of a prompt; without a span, those of a token behind it."""
        total = count
        for i, layer in enumerate(self.model.layers):
            if i in self.stages and count:
                h, count = self.drop(h, start, count, total, self.stages[i], layer.self_attn)
            first = self.entered[i].shape[1] if self.entered[i].ndim == 3 else 0
            whole = torch.cat([self.entered[i], h], 1) if first else h
            self.entered[i] = whole
            at = torch.arange(whole.shape[1])[None]
            turns = self.model.rotary_emb(whole, at)
            h = layer(whole, position_embeddings=turns, attention_mask=None)[:, first:]
        return self.head(self.model.norm(h))


@pytest.mark.parametrize("chunk", [None, 8])
def test_timeviper_on_qwen2(chunk):
    stages = (CompressionStage(2, "uniform", 0.5), CompressionStage(6, "attention", 0.2))
    theirs, ours = qwen2_pair(stages)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in ours.transv.parameters():
            size = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.8
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    assert ours.transv[0].k_proj.bias is not None
    assert ours.transv[0].o_proj.bias is None
    oracle, x, segment = TimeViper(theirs, ours), words(ours, 61), Segment(61, VisualSpan(4, 50))
    logits: list[torch.Tensor] = []
    read = prefill(ours, x, segment, max_new_tokens=5, chunk=chunk)
    tokens = torch.cat(list(decode(ours, read, max_new_tokens=5, on_logits=logits.append)))
    truth = [oracle(x, 4, 50)[:, -1]]
    for token in tokens[:-1]:
        truth.append(oracle(ours.embeddings(token)[None, None])[:, -1])
    torch.testing.assert_close(torch.cat(logits), torch.cat(truth), **LOGITS)
    for record, kept in zip(read.records, oracle.kept):
        assert torch.equal(record.kept[0], kept)
    assert [s.start + s.longest for s in read.cache.layers[::2]] == [
        t.shape[1] for t in oracle.entered
    ]


RAW = (CompressionStage(2, "uniform", 0.5), CompressionStage(6, "attention", 0.2))
NORMED = tuple(replace(stage, transfer=False, score="normed") for stage in RAW)


@pytest.mark.parametrize("stages", [(), RAW, NORMED], ids=["none", "TransV", "normed"])
def test_packed_samples_are_those_of_each_alone(stages):
    """Each sample's positions begin at 0, before and behind a stage; gradients too."""
    _, model = qwen2_pair(stages)
    for stage in model.transv:
        if stage.stage.transfer:
            torch.nn.init.constant_(stage.alpha, 0.6)
    model = model.double()
    sizes = ((34, 3, 24), (19, 0, 9), (27, 5, 12))
    labels = [torch.full((n,), -100) for n, _, _ in sizes]
    for one in labels:
        one[-5:] = torch.tensor([3, 8, 1, 89, 4])
    spans = [VisualSpan(first, count) for _, first, count in sizes]
    segments = tuple(map(training_segment, labels, spans))
    x = words(model, sum(n for n, _, _ in sizes)).double().requires_grad_()
    wanted = bool(stages)
    entered = listen(model)
    packed = packed_forward(model, x, segments, torch.cat(labels), log_scores=wanted)
    # attention sees differences of positions only, so the logits alone would not tell
    for layer in (0, -1):
        left = segments if layer == 0 else reduce(shorten, stages, segments)
        positions = torch.cat([torch.arange(segment.length) for segment in left])
        assert_positions(entered[layer][1], positions)
    [together] = torch.autograd.grad(packed.loss, x)
    alone = []
    for part, own, segment in zip(x.split([n for n, _, _ in sizes], 1), labels, segments):
        alone.append(packed_forward(model, part, (segment,), own, log_scores=wanted))
    logits = torch.cat([one.logits for one in alone])
    torch.testing.assert_close(packed.logits, logits, rtol=1e-9, atol=1e-9)
    loss = torch.stack([one.loss for one in alone]).mean()
    torch.testing.assert_close(packed.loss, loss, rtol=1e-9, atol=1e-9)
    [apart] = torch.autograd.grad(loss, x)
    torch.testing.assert_close(together, apart, rtol=1e-8, atol=1e-8)
    for record in packed.records[-1] if stages else ():
        torch.testing.assert_close(record.log_scores.exp(), record.scores, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("score", ["raw", "normed"])
def test_text_between_runs_of_vision_keeps_its_positions(score):
    """A stage that never drops the text between runs scores every token at its own position."""
    stage = CompressionStage(2, "attention", 0.4, transfer=False, score=score)
    _, model = qwen2_pair((stage,))
    x = words(model, 40)
    runs = [VisualSpan(3, 10), VisualSpan(15, 14)]
    whole = model(x, (Segment(40, VisualSpan(3, 26)),))[1][0][0]
    apart = model(x, (Segment.of_runs(40, runs),))[1][0][0]
    inside = [*range(10), *range(12, 26)]
    torch.testing.assert_close(apart.scores[0], whole.scores[0, inside], rtol=1e-5, atol=1e-7)
