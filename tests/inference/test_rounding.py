"""What a session loses in 16 bit, against float64: no more than one go loses.

Rounding may swap tokens whose scores are close, so scores are compared first, and then logits with
the same tokens kept. And shapes at the edge: one row of text, one row per pass, several stages that
ask, a stage that asks at the first attention layer.
"""

from __future__ import annotations

import pytest
import torch

from tests.contract import assert_close_by_rule
from tests.inference.one_go import (
    NEW,
    QWEN2,
    SCHEDULES,
    TINY,
    agree,
    answer_alike,
    backbone,
    forced,
    one_go,
    question_in_one_go,
    read,
    words,
)
from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.generate import prefill
from timeviper_fast.layout import Segment, VisualSpan

PATTERN = "M*M-M*M-M*M"
ASKING = {
    "twice": (CompressionStage(3, "uniform", 0.6), CompressionStage(5, "attention", 0.3),
              CompressionStage(9, "attention", 0.1)),
    "at the first attention layer": (CompressionStage(1, "attention", 0.25),),
    "then uniform, then again": (CompressionStage(1, "attention", 0.5),
                                 CompressionStage(4, "uniform", 0.3),
                                 CompressionStage(9, "attention", 0.1, transfer=False)),
}  # fmt: skip
ROTARY = (
    CompressionStage(2, "uniform", 0.75, transfer=False, spacing="linspace"),
    CompressionStage(4, "attention", 0.25, score="normed"),
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["shipped", "uniform alone", "rotary"])
def test_a_session_loses_no_more_than_one_go(name: str, dtype: torch.dtype) -> None:
    """Both read the same numbers in the same 16 bit type; the truth reads them in float64."""
    pattern, stages, family = PATTERN, SCHEDULES.get(name, ROTARY), TINY
    if name == "rotary":
        pattern, family = "*-" * 5, QWEN2
    model = backbone(pattern, stages, dtype, family=family)
    exact = backbone(pattern, stages, family=family)
    exact.load_state_dict(model.state_dict())
    exact = exact.double()
    given = [words(n, seed).to(dtype) for n, seed in ((4, 1), (160, 2), (9, 3))]
    truth = question_in_one_go(exact, *(x.double() for x in given))
    with forced(model, truth.records):
        whole = question_in_one_go(model, *given)
        video = read(model, *given[:2], chunk=37, pushes=11)
        session = video.read([given[2]], max_new_tokens=NEW)
    for ours, plain, right in zip(session.records, whole.records, truth.records):
        assert torch.equal(ours.kept, right.kept)
        if right.scores is not None:
            assert_close_by_rule(ours.scores, plain.scores, right.scores, "scores")
    # logits are 16 bit numbers, widened
    rounded = (x.logits.to(dtype) for x in (session, whole))
    assert_close_by_rule(*rounded, truth.logits, "logits")


@pytest.mark.parametrize("name", ASKING)
def test_stages_that_ask_anywhere(name: str) -> None:
    model = backbone(PATTERN, ASKING[name])
    front, vision = words(4, 1), words(160, 2)
    video = read(model, front, vision, chunk=37, pushes=11)
    for length in (1, 9):
        text = words(length, 3)
        got, want = video.read([text], max_new_tokens=NEW), None
        want = question_in_one_go(model, front, vision, text)
        agree(model, got, want)
        answer_alike(model, got, want)


@pytest.mark.parametrize("chunk", [1, 5, None])
def test_rotary_positions_go_on_behind_the_video(chunk: int | None) -> None:
    model = backbone("*-" * 5, ROTARY, family=QWEN2)
    front, vision = words(3, 1), words(64, 2)
    video = read(model, front, vision, chunk=chunk, pushes=11)
    texts = [words(n, n) for n in (6, 1, 11)]
    together = video.read(texts, max_new_tokens=NEW)
    for row, text in enumerate(texts):
        want = question_in_one_go(model, front, vision, text)
        agree(model, video.read([text], max_new_tokens=NEW), want)
        assert torch.equal(together.kept[row], want.kept[0])
        assert (together.logits[row] - want.logits[0]).norm() < 1e-5 * want.logits.norm()
    both = torch.cat(texts[:2], 1)
    later = video.after(texts[0]).read([texts[1]], max_new_tokens=NEW)
    answer_alike(model, later, question_in_one_go(model, front, vision, both))


@pytest.mark.parametrize("chunk", [1, 40, None])
def test_a_batch_of_videos(chunk: int | None) -> None:
    """Each with tokens, question and choice of its own."""
    model = backbone(PATTERN, SCHEDULES["shipped"])
    whole = words(4 + 64 + 7, 5, batch=2)
    segment = Segment(whole.shape[1], VisualSpan(4, 64))
    got = prefill(model, whole, segment, max_new_tokens=NEW, chunk=chunk)
    want = one_go(model, whole, segment)
    assert not torch.equal(want.kept[0], want.kept[1])
    agree(model, got, want)
    answer_alike(model, got, want)
