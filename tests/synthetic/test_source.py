"""The source's samples show the needed needles, have the stated cost, and are reproducible."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.synthetic.test_pool import numbers_of, small_pool
from timeviper_fast.dataset.sample import Draw, Limits
from timeviper_fast.synthetic.questions import TASKS
from timeviper_fast.synthetic.source import SyntheticSource
from timeviper_fast.synthetic.world import World
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.text.prompt import training_prompt


def count_text(messages, vision, preface, placeholder):
    return training_prompt(TOKENIZER, messages, vision=vision).length(0)


TOKENIZER = byte_tokenizer()
POOL = small_pool(plain=100, copies=5)


def source(**options):
    limits = options.pop("limits", Limits(8, 64))
    return SyntheticSource(POOL, count_text, limits=limits, **options)


def draws(count):
    return [Draw(0, i, 1000 + i) for i in range(count)]


def test_samples_cost_what_the_source_says():
    made = source(turns=2, tasks=TASKS)
    for draw in draws(60):
        cost, sample = made.cost(draw.index, draw), made.load(draw.index, draw)
        assert cost.frames == sample.frames == len(sample.seconds)
        assert cost.text == training_prompt(TOKENIZER, sample.messages).length(0)


def test_needed_frames_show_the_answer():
    """The pool's features are frame numbers, so they identify a frame's needle."""
    kinds = {
        number: needle
        for needle, (first, count) in POOL.places.items()
        for number in range(first, first + count)
    }
    seen = Counter()
    for draw in draws(150):
        made = source()
        sample, puzzle = made.load(0, draw), made.puzzle(draw)
        shown = [kinds.get(number) for number in numbers_of(sample.features)]
        assert {i: n for i, n in enumerate(shown) if n} == puzzle.needles
        asked, answer = puzzle.questions[-1], sample.messages[-1]["content"]
        assert sample.needed == asked.needed
        for i in sample.needed:
            told = shown[i].text or f"{shown[i].kind} {shown[i].colour}"
            assert asked.task == "count" or told in answer
        seen[asked.task] += 1
    assert len(seen) == 4


def test_a_draw_is_repeatable_and_another_is_another_video():
    made = source()
    one, same, other = (made.load(0, Draw(0, 0, seed)) for seed in (5, 5, 6))
    assert torch.equal(one.features, same.features)
    assert one.messages == same.messages
    assert other.features.shape != one.features.shape or (other.features != one.features).any()


def test_lengths_lie_within_the_limits_and_reach_them():
    made = source(limits=Limits(1, 4)).limits(Limits(3, 6))
    lengths = Counter(made.cost(0, draw).frames for draw in draws(300))
    assert sorted(lengths) == [3, 4, 5, 6]
    assert source(limits=Limits(9, 9)).cost(0, draws(1)[0]).frames == 9


def test_turns_ask_different_things():
    sample = source(turns=3).load(0, draws(1)[0])
    questions = [m["content"] for m in sample.messages if m["role"] == "user"]
    assert len(set(questions)) == len(questions) == 3
    assert [m["role"] for m in sample.messages] == ["user", "assistant"] * 3


def test_a_world_gives_pixels():
    made = SyntheticSource(World(3, "hard"), count_text, limits=Limits(8, 8))
    draw = draws(1)[0]
    sample = made.load(0, draw)
    assert sample.features is None
    assert sample.pixels.shape == (8, 3, 48, 48)
    assert torch.equal(sample.pixels, made.load(0, draw).pixels)
    assert made.cost(0, draw).frames == 8


def test_a_pool_that_is_too_small_is_an_error():
    with pytest.raises(ValueError, match="max_frames must be at most the pool's 100 plain"):
        source(limits=Limits(1, 101))
    with pytest.raises(ValueError, match="image_size must be None or 48, got 96"):
        source(limits=Limits(1, 4, 96))
