"""Rows that end at different steps, and text that appears as whole words."""

from __future__ import annotations

import pytest

from timeviper_fast.inference.answer import speak
from timeviper_fast.inference.request import Sampling


@pytest.fixture(scope="module")
def read(model, video):
    session = model.open(video, policy="uniform:4")

    def again(*questions: str):
        texts = [session._embedded(model.tokenizer.encode(question)) for question in questions]
        return session._ended.read(texts, max_new_tokens=8)

    return again


def spoken(model, read, stop_ids=frozenset(), **options):
    return speak(
        model.backbone,
        model.tokenizer,
        read,
        max_new_tokens=8,
        stop_ids=set(stop_ids),
        sampling=Sampling(),
        **options,
    )


def test_each_row_ends_with_its_own_stop_token(model, read):
    questions = ("What moves?", "Why does it?")
    free = [ids for ids, _ in spoken(model, read(*questions))]
    stop = free[0][2]
    ended = [ids for ids, _ in spoken(model, read(*questions), {stop})]
    for before, after in zip(free, ended):
        cut = before.index(stop) + 1 if stop in before else len(before)
        assert after == before[:cut]


def test_pieces_of_text_are_the_text(model, read):
    heard: list[str] = []
    steps: list[tuple] = []
    options = {"on_text": [heard.append], "progress": lambda *step: steps.append(step)}
    [(ids, text)] = spoken(model, read("What moves?"), **options)
    assert "".join(heard).strip() == text
    assert steps[-1] == ("tokens", len(ids), 8)
