"""What a device's memory chooses and refuses, and what is said when it runs out."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.inference import room
from timeviper_fast.inference.plan import plan
from timeviper_fast.inference.request import Opening
from timeviper_fast.inference.room import OutOfMemory, fitting_batch, planned

LENGTHS = (500, 20, 60)


def with_free(monkeypatch, free: int | None) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: free)


def test_a_cpu_takes_the_default(model):
    opening, store = planned(model, Opening(), *LENGTHS, 100)
    assert (opening.chunk, opening.frame_batch, store.type) == (8192, None, "cpu")
    assert planned(model, Opening(chunk=7), *LENGTHS, 100)[0].chunk == 7


def test_less_memory_takes_smaller_steps_and_at_last_refuses(model, monkeypatch):
    taken = []
    for free in (10**12, 900_000_000, 860_000_000):
        with_free(monkeypatch, free)
        opening, _ = planned(model, Opening(policy="fps:1"), *LENGTHS, 100)
        taken.append((opening.chunk, opening.frame_batch))
    assert taken[0] == (8192, 256)
    assert taken == sorted(taken, reverse=True)
    assert taken[2] < taken[0]
    with_free(monkeypatch, 1000)
    with pytest.raises(ValueError, match=r"policy must fit the memory of the device .*GB"):
        planned(model, Opening(policy="fps:1"), *LENGTHS, 100)


def test_fewer_questions_at_a_time_where_all_do_not_fit(model, monkeypatch):
    numbers = {"before": 20, "text": 60, "max_new_tokens": 20_000, "dtype": "float32"}
    for questions in (8, 4, 2, 1):
        made = plan(model.config, 500, questions=questions, chunk=512, frame_batch=1, **numbers)
        with_free(monkeypatch, made.need - made.exact["weights"])
        size = fitting_batch(model, *LENGTHS, 20_000, held=0, chunk=512, most=8)
        assert size == questions
    with_free(monkeypatch, None)
    assert fitting_batch(model, *LENGTHS, 20_000, held=0, chunk=512, most=8) == 8
    with_free(monkeypatch, 0)
    with pytest.raises(ValueError, match="must fit the memory"):
        fitting_batch(model, *LENGTHS, 100, held=0, chunk=512, most=8)


@pytest.mark.parametrize("layer", [1, 9])
def test_an_answer_without_memory_says_what_is_needed(model, video, layer):
    session = model.open(video, policy="uniform:6")
    answer = session.ask("What moves?", max_new_tokens=3)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    handle = model.backbone.layers[layer].register_forward_pre_hook(fail)
    words = r"out of memory while answering: 6 frames and 2 questions with 3 new tokens need up to"
    with pytest.raises(OutOfMemory, match=words + r" 0\.\d+ GB \(weights 0.01, session"):
        session.ask(["What moves?", "Why?"], max_new_tokens=3)
    if layer == 1:
        with pytest.raises(OutOfMemory, match="while reading the video"):
            model.open(video, policy="uniform:6")
    handle.remove()
    assert session.ask("What moves?", max_new_tokens=3).token_ids == answer.token_ids


def test_other_errors_are_themselves(model, video):
    session = model.open(video, policy="uniform:6")

    def fail(*_):
        raise RuntimeError("something else")

    handle = model.backbone.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        session.ask("What moves?")
    handle.remove()


def test_rows_in_host_memory_answer_alike(model, video, monkeypatch):
    here = model.open(video, policy="uniform:6")
    made = planned

    def away(*arguments):
        opening, _ = made(*arguments)
        return opening, torch.device("cpu")

    monkeypatch.setattr("timeviper_fast.inference.open.planned", away)
    there = model.open(video, policy="uniform:6")
    one, two = (s.ask("What moves?", max_new_tokens=3) for s in (here, there))
    assert one.token_ids == two.token_ids
