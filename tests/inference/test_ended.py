"""A video that is read once, and its questions, against everything in one go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.one_go import (
    NEW,
    SCHEDULES,
    agree,
    backbone,
    question_in_one_go,
    read,
    said,
    words,
)
from timeviper_fast.config import CompressionStage


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
        assert said(model, got) == said(model, want)


CASES = {
    "pattern": st.text("M*-", min_size=4, max_size=10),
    "front": st.integers(0, 13),
    "vision": st.integers(16, 400),
    "text": st.integers(1, 40),
    "chunk": st.integers(5, 300),
    "pushes": st.integers(1, 200),
    "picks": st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=3),
    "keeps": st.lists(st.sampled_from([1.0, 0.9, 0.5, 0.25, 0.1, 0.001]), min_size=3, max_size=3),
    "seed": st.integers(0, 2**16),
}


def any_case(pattern, front, vision, text, chunk, pushes, picks, keeps, seed) -> None:
    if set(pattern) <= {"-"}:
        pattern += "M"
    stages = []
    for (layer, attention, transfer), keep in zip(
        sorted(dict.fromkeys(picks)), sorted(keeps)[::-1]
    ):
        layer = min(layer, len(pattern) - 1)
        if stages and stages[-1].layer >= layer:
            continue
        select = "attention" if attention and pattern[layer] == "*" else "uniform"
        stages.append(CompressionStage(layer, select, keep, transfer=transfer))
    model = backbone(pattern, tuple(stages), seed=seed)
    shapes = words(front, seed), words(vision, seed + 1), words(text, seed + 2)
    video = read(model, *shapes[:2], chunk=chunk, pushes=pushes)
    got = video.read([shapes[2]], max_new_tokens=NEW)
    want = question_in_one_go(model, *shapes)
    agree(model, got, want)
    assert said(model, got) == said(model, want)


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
    answers = said(model, together)
    for row, text in enumerate(texts):
        alone = video.read([text], max_new_tokens=NEW)
        assert torch.equal(alone.logits[0], together.logits[row])
        assert torch.equal(alone.kept[0], together.kept[row])
        assert said(model, alone)[0] == answers[row]


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
