"""A video that is read once, and its questions, against everything in one go."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.footprint import largest_tensor
from tests.inference.one_go import (
    NEW,
    QWEN2,
    SCHEDULES,
    TINY,
    agree,
    answer_alike,
    backbone,
    digest,
    question_in_one_go,
    read,
    said,
    words,
)
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.generate import decode
from timeviper_fast.inference.request import Sampling
from timeviper_fast.model.cache import AttentionState


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_video_read_once_answers_as_one_go(name: str) -> None:
    model = backbone("M*M-M*M-M*M", SCHEDULES[name])
    front, vision = words(4, 1), words(160, 2)
    video = read(model, front, vision, chunk=37, pushes=11)
    for seed, length in ((3, 6), (4, 1), (5, 19)):
        text = words(length, seed)
        got = video.read([text], max_new_tokens=NEW)
        want = question_in_one_go(model, front, vision, text)
        agree(model, got, want)
        answer_alike(model, got, want)


CASES = {
    "pattern": st.text("M*-", min_size=4, max_size=10),
    "qwen2": st.integers(0, 3).map(lambda x: x == 0),
    "front": st.integers(0, 13),
    "vision": st.integers(16, 400),
    "text": st.integers(1, 40),
    "chunk": st.integers(1, 300),
    "pushes": st.integers(1, 200),
    "batch": st.sampled_from([1, 1, 2]),
    "picks": st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=3),
    "keeps": st.lists(st.sampled_from([1.0, 0.9, 0.5, 0.25, 0.1, 0.001]), min_size=3, max_size=3),
    "seed": st.integers(0, 2**16),
}


def any_case(pattern, qwen2, front, vision, text, chunk, pushes, batch, picks, keeps, seed) -> None:
    if set(pattern) <= {"-"}:
        pattern += "M"
    if qwen2:
        pattern = "*-" * (len(pattern) // 2)
    # a row at a time is slow
    vision = min(vision, 20 * chunk)
    stages = []
    for (layer, attention, transfer), keep in zip(
        sorted(dict.fromkeys(picks)), sorted(keeps)[::-1]
    ):
        # a stage of Qwen2 stands before a block's attention
        layer = min(layer, len(pattern) - 1) // (2 if qwen2 else 1) * (2 if qwen2 else 1)
        if stages and stages[-1].layer >= layer:
            continue
        select = "attention" if attention and pattern[layer] == "*" else "uniform"
        score = "normed" if qwen2 else "raw"
        stages.append(CompressionStage(layer, select, keep, transfer=transfer, score=score))
    model = backbone(pattern, tuple(stages), seed=seed, family=QWEN2 if qwen2 else TINY)
    sizes = (front, vision, text)
    shapes = [words(n, seed + i, batch=batch) for i, n in enumerate(sizes)]
    video = read(model, *shapes[:2], chunk=chunk, pushes=pushes, batch=batch)
    got = video.read([shapes[2]], max_new_tokens=NEW)
    want = question_in_one_go(model, *shapes)
    agree(model, got, want)
    answer_alike(model, got, want)


@given(**CASES)
def test_any_schedule_answers_as_one_go(**case) -> None:
    any_case(**case)


@pytest.mark.long
@settings(max_examples=200)
@given(**CASES)
def test_two_hundred_schedules_answer_as_one_go(**case) -> None:
    any_case(**case)


def test_several_questions_are_read_as_each_alone() -> None:
    model = backbone("M*M-M*M-M*M", SCHEDULES["shipped"])
    video = read(model, words(4, 1), words(160, 2), chunk=37, pushes=11)
    texts = [words(n, seed) for seed, n in enumerate((6, 1, 19), start=3)]
    together = video.read(texts, max_new_tokens=NEW)
    alone = [video.read([text], max_new_tokens=NEW) for text in texts]
    assert torch.equal(together.logits, torch.cat([one.logits for one in alone]))
    assert torch.equal(together.kept, torch.cat([one.kept for one in alone]))
    steps: list[list[torch.Tensor]] = [[] for _ in range(4)]
    for one, seen in zip((together, *alone), steps):
        list(decode(model, one, max_new_tokens=NEW, on_logits=seen.append))
    for step, *ones in zip(*steps):
        assert torch.equal(step.argmax(-1), torch.cat(ones).argmax(-1))
        assert (step - torch.cat(ones)).norm() < 1e-5 * step.norm()


def test_what_the_turn_before_left_is_the_whole_conversation() -> None:
    model = backbone("M*M-M*M-M*M", SCHEDULES["shipped"])
    front, vision, first, second = words(4, 1), words(160, 2), words(6, 3), words(9, 4)
    video = read(model, front, vision, chunk=37, pushes=11)
    later = video.after(first)
    both = torch.cat([first, second], 1)
    want = question_in_one_go(model, front, vision, both)
    agree(model, later.read([second], max_new_tokens=NEW), want)
    agree(model, later.after(second).read([second[:, :0]], max_new_tokens=NEW), want)
    # and the turn before is as it was
    agree(
        model,
        video.read([first], max_new_tokens=NEW),
        question_in_one_go(model, front, vision, first),
    )


def test_no_question_changes_the_video() -> None:
    model = backbone("M*M-M*M-M*M", SCHEDULES["shipped"])
    video = read(model, words(4, 1), words(160, 2), chunk=37, pushes=11)
    later = video.after(words(1, 3))
    before = digest(video), digest(later)
    # a text of one row takes the decode step, which writes states in place
    for texts in ([words(1, 3)], [words(6, 4), words(1, 5)], [words(40, 6)]):
        said(model, video.read(texts, max_new_tokens=NEW))
        said(model, later.read(texts, max_new_tokens=NEW))
    later.after(words(1, 7))
    assert (digest(video), digest(later)) == before


def test_a_drawn_answer_does_not_depend_on_its_neighbours() -> None:
    model = backbone("M*M-M*M-M*M", SCHEDULES["shipped"])
    video = read(model, words(4, 1), words(160, 2), chunk=37, pushes=11)
    options = {"max_new_tokens": NEW, "sampling": Sampling(temperature=1.0, seed=11)}
    texts = [words(n, seed) for seed, n in enumerate((6, 1, 19), start=3)]
    together = decode(model, video.read(texts, max_new_tokens=NEW), **options)
    rows = torch.stack(list(together), 1)
    for row, text in zip(rows, texts):
        alone = decode(model, video.read([text], max_new_tokens=NEW), **options)
        assert torch.equal(torch.stack(list(alone), 1)[0], row)


def test_questions_allocate_nothing_as_large_as_the_video(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No map of text and video beyond one block, and no copy of the video's keys and values."""
    op = import_module("tvkernels.gated_cross_attention.reference")
    monkeypatch.setattr(op, "MAP_BLOCK", 2048)
    stages = (CompressionStage(3, "uniform", 0.25), CompressionStage(5, "attention", 0.05))
    model = backbone("M*M-M*M-M*M", stages)
    video = read(model, words(4, 1), words(4096, 2), chunk=512, pushes=1024)
    keys = [state.written[0] for state in video.cache.layers if isinstance(state, AttentionState)]
    least = min(x.numel() for x in (*keys, *video.dropped[0]) if x.numel())
    texts = [words(n, n) for n in (32, 30, 1, 17)]
    # a map would have 32 x 4 x 3,072 numbers, at least
    assert largest_tensor(lambda: video.read(texts, max_new_tokens=NEW)) < least < 32 * 4 * 3072
    cache = video.read(texts, max_new_tokens=NEW).cache
    for own, fork in zip(video.cache.layers, cache.layers):
        if isinstance(own, AttentionState) and own.longest:
            assert fork.prefix[0].data_ptr() == own.key.data_ptr()
            assert fork.prefix[1].data_ptr() == own.value.data_ptr()
    step = words(1, 3, batch=len(texts))
    assert largest_tensor(lambda: forward(model, step, cache)) < least


@torch.no_grad()
def forward(model, hidden, cache) -> None:
    model(hidden, cache=cache)
