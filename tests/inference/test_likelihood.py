"""The likelihood of an answer: the greedy one has it, one prompt is scored at a time."""

from __future__ import annotations

import pytest
import torch

from tests.random_model import tiny_model
from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.likelihood import likelihood
from timeviper_fast.inference.request import Question, Sampling


@pytest.fixture(scope="module")
def session():
    return tiny_model().open(torch.zeros(6, 48, 48, 3, dtype=torch.uint8))


def test_an_answer_is_greedy_if_decoding_says_it(session):
    plain = Sampling(repetition_penalty=1)
    said = session.ask("What is it?", max_new_tokens=3, sampling=plain).token_ids
    other = (*said[:-1], said[-1] - 1)
    found = [likelihood(session.model.backbone, read(session, 3), ids) for ids in (said, other)]
    assert [one.greedy for one in found] == [True, False]
    assert found[1].log < found[0].log < 0


def test_the_tokens_probabilities_multiply(session):
    read_once = [likelihood(session.model.backbone, read(session, 2), ids) for ids in ([7], [7, 9])]
    logits = read(session, 1).logits.double().log_softmax(-1)
    assert read_once[0].log == pytest.approx(float(logits[0, 7]), abs=1e-5)
    assert read_once[1].log < read_once[0].log


def test_what_cannot_be_scored_is_named(session):
    text = read(session, 1)
    with pytest.raises(ArgumentError, match="answer_ids must hold a token or more"):
        likelihood(session.model.backbone, text, [])
    text.logits = text.logits.expand(2, -1)
    with pytest.raises(ArgumentError, match="read must be one prompt, got 2"):
        likelihood(session.model.backbone, text, [1])


def read(session, room):
    return session.read(Question("What is it?", room))
