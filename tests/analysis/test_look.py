"""Layers of whole models against whole matrices, with stages and answers, and behind a session."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch

from tests.analysis.dense import (
    QWEN2,
    STAGES,
    attention_matrix,
    backbone,
    mamba_matrix,
    randn,
    turned,
)
from tests.footprint import Footprint
from tests.tiny import TINY
from timeviper_fast.analysis.look import Looking, look, look_behind
from timeviper_fast.analysis.mamba import scan_weights
from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.inference.generate import prefill, read_front
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.nemotron_h import HybridBackbone

# 4 words, 20 vision tokens, 7 words; 3 tokens of an answer
SEGMENT = Segment(31, VisualSpan(4, 20))
QWEN2_STAGES = (
    CompressionStage(2, "uniform", 0.6, transfer=False),
    CompressionStage(4, "attention", 0.3, transfer=False, score="normed"),
)
MODELS = {"nemotron_h": (TINY, STAGES), "qwen2": (QWEN2, QWEN2_STAGES), "no stages": (TINY, ())}


@lru_cache
def model_of(name: str) -> HybridBackbone:
    config, stages = MODELS[name]
    return backbone(config, stages)


def given_to(model: HybridBackbone) -> tuple[torch.Tensor, torch.Tensor]:
    width = model.config.hidden_size
    return randn(1, 31, width, seed=1), randn(1, 3, width, seed=2)


def inputs_of(model: HybridBackbone, prompt, answer) -> dict[int, torch.Tensor]:
    """(m, d_model) that enters each mixer when the answer is decoded token by token."""
    found: dict[int, list[torch.Tensor]] = {}
    hooks = [
        block.mixer.register_forward_pre_hook(
            lambda _, args, i=i: found.setdefault(i, []).append(args[0][0])
        )
        for i, block in enumerate(model.layers)
    ]
    with torch.no_grad():
        read = prefill(model, prompt, SEGMENT, max_new_tokens=3, chunk=9)
        for token in answer.split(1, dim=1):
            model(token, cache=read.cache)
    for hook in hooks:
        hook.remove()
    return {i: torch.cat(parts) for i, parts in found.items()}


def matrix_of(model: HybridBackbone, layer: int, x: torch.Tensor) -> torch.Tensor:
    """(nheads, m, m) of a layer whose mixer reads x (m, d_model)."""
    mixer, config = model.layers[layer].mixer, model.config
    if config.pattern[layer] == "M":
        return mamba_matrix(*scan_weights(mixer, x[None]))
    q, k = (p(x).unflatten(-1, (-1, config.head_dim)) for p in (mixer.q_proj, mixer.k_proj))
    if config.rope_theta:
        q, k = turned(q, config.rope_theta), turned(k, config.rope_theta)
    return attention_matrix(q, k)


@torch.no_grad()
@pytest.mark.parametrize("name", ["nemotron_h", "no stages"])
def test_layers_are_seen_as_they_decode(name: str) -> None:
    """Masses, absolute sums, sinks and maps of every layer, where the answer came token by token."""
    model = model_of(name)
    prompt, answer = given_to(model)
    inputs = inputs_of(model, prompt, answer)
    seen = [i for i, kind in enumerate(model.config.pattern) if kind in "M*"]
    looking = Looking(maps={i: [0, 2] for i in seen}, sinks=2, window=4)
    view = look(model, prompt, SEGMENT, answer, looking)
    assert [v.layer for v in view.layers] == seen
    for v in view.layers:
        M = matrix_of(model, v.layer, inputs[v.layer])
        groups = v.groups.indicator().double()
        assert len(v.groups) == M.shape[-1]
        assert v.groups.position[v.chosen].tolist() == list(range(24, 34))
        want = M @ groups
        torch.testing.assert_close(v.mass, want.float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(v.mean_mass, want.mean(0).float(), rtol=1e-5, atol=1e-6)
        rows = M[:, v.chosen].abs()
        # decoding keeps Mamba-2's state in float32
        torch.testing.assert_close(v.absolute, rows @ groups, rtol=1e-6, atol=1e-9)
        share = rows / rows.sum(-1, keepdim=True)
        first = M[:, 2:] if v.kind == "attention" else share
        torch.testing.assert_close(v.sink.mass, first[..., :2].sum(-1).mean(-1))
        assert v.sink.rows == first.shape[1]
        torch.testing.assert_close(v.maps[2], M[2, v.chosen].float(), rtol=1e-5, atol=1e-6)
        told = (share @ groups).mean(0)
        last = v.groups.place("answer")
        torch.testing.assert_close(v.scores[last], told[-3:].sum(0) / (told[-3:] != 0).sum(0))


@torch.no_grad()
def test_a_qwen2_is_seen_with_its_rotary_positions() -> None:
    model = model_of("qwen2")
    prompt, answer = given_to(model)
    inputs = inputs_of(model, prompt, answer)
    view = look(model, prompt, SEGMENT, answer)
    assert [v.layer for v in view.layers] == [0, 2, 4]
    assert [len(v.groups) for v in view.layers] == [34, 26, 20]
    for v in view.layers:
        want = matrix_of(model, v.layer, inputs[v.layer]) @ v.groups.indicator().double()
        torch.testing.assert_close(v.mass, want.float(), rtol=1e-5, atol=1e-6)
    depth = view.by_depth("answer", "vision")
    assert [(layer, kind) for layer, kind, _ in depth] == [(i, "attention") for i in (0, 2, 4)]
    assert all(0 < share < 1 for _, _, share in depth)


@torch.no_grad()
@pytest.mark.parametrize("name", ["nemotron_h", "qwen2"])
@pytest.mark.parametrize("chunk", [None, 5])
def test_behind_a_video_that_was_read_the_same_is_seen(name: str, chunk: int | None) -> None:
    """Of the question's and the answer's rows; Mamba-2 layers below the asking stage are named."""
    model = model_of(name)
    prompt, answer = given_to(model)
    whole = {v.layer: v for v in look(model, prompt, SEGMENT, answer).layers}
    ended = read_front(model, prompt, SEGMENT, chunk=chunk)
    view = look_behind(ended, prompt[:, SEGMENT.span.stop :], answer)
    asking = model.stages[1].layer
    below = [i for i, kind in enumerate(model.config.pattern[:asking]) if kind == "M"]
    assert [*view.skipped] == below
    assert [v.layer for v in view.layers] == [i for i in whole if i not in below]
    for v in view.layers:
        other = whole[v.layer]
        assert v.groups.position.equal(other.groups.position)
        assert v.mass.shape[1] == (10 if v.layer < asking else len(v.groups))
        torch.testing.assert_close(v.mass, other.mass[:, -v.mass.shape[1] :])
        torch.testing.assert_close(v.absolute, other.absolute)
        torch.testing.assert_close(v.scores, other.scores)
        torch.testing.assert_close(v.profile.reach, other.profile.reach, equal_nan=True)


@torch.no_grad()
def test_text_alone_and_chosen_rows() -> None:
    model = model_of("nemotron_h")
    prompt, _ = given_to(model)
    view = look(model, prompt, looking=Looking(rows=[5, 30], by_head=False, window=8))
    assert view.names == ("instruction", "vision", "answer")
    for v in view.layers:
        assert v.chosen.tolist() == [5, 30]
        assert v.mass is None
        assert v.scores[0].tolist() == pytest.approx([1.0, 0.0, 0.0])
        assert set(v.profile.rows.tolist()) == {1}


@torch.no_grad()
def test_upstreams_form_leaves_dt_out() -> None:
    model = model_of("no stages")
    prompt, answer = given_to(model)
    view = look(model, prompt, SEGMENT, answer, Looking(with_dt=False))
    first = view.layers[0]
    x = inputs_of(model, prompt, answer)[0]
    M = mamba_matrix(*scan_weights(model.layers[0].mixer, x[None]), with_dt=False)
    want = M[:, first.chosen].abs() @ first.groups.indicator().double()
    torch.testing.assert_close(first.absolute, want)
    assert view.to_dict()["with_dt"] is False


@torch.no_grad()
def test_figures_are_plain_numbers() -> None:
    model = model_of("nemotron_h")
    prompt, answer = given_to(model)
    looking = Looking(further={"question": range(24, 31)}, maps={3: [1]})
    view = look(model, prompt, SEGMENT, answer, looking)
    told = json.loads(json.dumps(view.to_dict(), allow_nan=False))
    assert told["groups"] == ["instruction", "vision", "answer", "question"]
    vision = [layer["tokens"]["vision"] for layer in told["layers"]]
    assert vision == [20, 20, 12, 12, 12, 6, 6]
    assert view.kept().sum(1).tolist() == vision
    assert [len(row) for row in told["layers"][2]["maps"]["1"]] == [26] * 10


@torch.no_grad()
def test_looking_changes_nothing_and_leaves_no_hook() -> None:
    model = model_of("nemotron_h")
    prompt, answer = given_to(model)
    before = prompt.clone()
    look(model, prompt, SEGMENT, answer)
    assert prompt.equal(before)
    with pytest.raises(ValueError, match="be one sequence of embeddings"):
        look(model, prompt.repeat(2, 1, 1), SEGMENT)
    assert not any(block.mixer._forward_pre_hooks for block in model.layers)


@pytest.mark.parametrize(
    ("looking", "words"),
    [
        ({"maps": {1: [0]}}, "maps must name layers of attention or Mamba-2, got 1"),
        ({"maps": {3: [5]}}, r"maps must name heads 0 .. 4 of layer 3, got \[5\]"),
        ({"maps": {3: [0.0]}}, r"maps must name heads 0 .. 4 of layer 3, got \[0.0\]"),
        ({"maps": {"3": [0]}}, "maps must name layers of attention or Mamba-2, got '3'"),
        ({"rows": [1.5]}, r"rows must be integers, got \[1.5\]"),
        ({"rows": [31]}, r"rows must lie in 0 .. 30, got \[31, 31\]"),
        ({"sinks": 0}, r"sinks, window must be 1 or more, got \(0, 64\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_runs(looking, words) -> None:
    model = model_of("nemotron_h")
    with pytest.raises(ValueError, match=words):
        look(model, given_to(model)[0], SEGMENT, looking=Looking(**looking))


@torch.no_grad()
def test_a_question_needs_a_token_and_a_video_all_its_columns() -> None:
    model = model_of("nemotron_h")
    prompt, _ = given_to(model)
    ended = read_front(model, prompt, SEGMENT)
    with pytest.raises(ValueError, match="text must have at least one token"):
        look_behind(ended, prompt[:, :0])
    # attention layer 3 forgets one of the 16 tokens that came to it
    ended.cache.layers[3].select(torch.arange(16) != 4)
    with pytest.raises(ValueError, match="hold all 23 tokens that came to layer 3, got 22"):
        look_behind(ended, prompt[:, SEGMENT.span.stop :])


@pytest.mark.long
@torch.no_grad()
def test_memory_is_linear_at_131072_tokens() -> None:
    """A Mamba-2 and an attention layer on the CPU. A single head's matrix would be 64 GiB."""
    config = BackboneConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, pattern="M*-", num_attention_heads=1,
        head_dim=8, num_key_value_heads=1, ssm_state_size=8, mamba_num_heads=4, n_groups=2,
        mamba_head_dim=8, max_position_embeddings=1 << 18,
    )  # fmt: skip
    model, peaks = backbone(config).float(), []
    for length in (16384, 131072):
        prompt = randn(1, length, 16).float()
        with Footprint() as footprint:
            view = look(model, prompt, Segment(length, VisualSpan(8, length - 40)))
        peaks.append(footprint.peak())
        mass = view.layers[1].mass
        assert mass is not None
        torch.testing.assert_close(mass.sum(-1), torch.ones(1, length), rtol=0, atol=1e-4)
        assert all(v.absolute.shape[1] == 32 for v in view.layers)
    assert peaks[1] < 2**30
    # a block of rows has up to 2^24 weights of 8 bytes, whatever the length
    assert peaks[1] < 8 * peaks[0] + 3 * 2**27
