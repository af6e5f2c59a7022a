"""Groups of tokens, behind stages, and as frames and seconds."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.analysis.groups import Groups
from timeviper_fast.layout import Segment, VisualSpan

# 2 words, 6 vision tokens, 3 words; then 2 tokens of the answer
PROMPT = Segment(11, VisualSpan(2, 6))


def test_each_token_is_in_one_group() -> None:
    groups = Groups.of(PROMPT, 2)
    assert groups.names == ("instruction", "vision", "answer")
    assert groups.number.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 2, 2]
    assert groups.vision.tolist() == [-1, -1, 0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -1]
    assert [groups.count(name) for name in groups.names] == [5, 6, 2]
    assert groups.indicator().sum(1).eq(1).all()


def test_further_groups_take_tokens_from_theirs_and_sinks_do_not() -> None:
    groups = Groups.of(PROMPT, 2, {"question": [8, 9, 10], "first frame": torch.tensor([2, 3])})
    assert groups.number.tolist() == [0, 0, 4, 4, 1, 1, 1, 1, 3, 3, 3, 2, 2]
    indicator = groups.indicator(sinks=2)
    assert indicator.shape == (13, 6)
    assert indicator[:, -1].tolist() == [1, 1] + [0] * 11
    assert indicator[:, :-1].sum(1).eq(1).all()


def test_text_between_runs_of_vision_is_instruction() -> None:
    segment = Segment.of_runs(9, [VisualSpan(1, 2), VisualSpan(4, 3)])
    assert Groups.of(segment).number.tolist() == [0, 1, 1, 0, 1, 1, 1, 0, 0]
    kept = Groups.of(segment).keep(torch.tensor([1, 4]))
    assert kept.position.tolist() == [0, 2, 3, 6, 7, 8]
    assert kept.vision.tolist() == [-1, 1, -1, 4, -1, -1]


def test_behind_stages_tokens_keep_their_frames_and_seconds() -> None:
    groups = Groups.of(PROMPT, 1).keep(torch.tensor([0, 2, 3, 5])).keep(torch.tensor([1, 3]))
    assert groups.vision.tolist() == [-1, -1, 2, 5, -1, -1, -1, -1]
    assert groups.rows(torch.tensor([2, 4, 7, 11])).tolist() == [2, 3, 7]
    assert groups.frames([3, 3]).tolist() == [-1, -1, 0, 1, -1, -1, -1, -1]
    seconds = groups.seconds(torch.arange(6) / 2)
    assert seconds[2:4].tolist() == [1.0, 2.5]
    assert seconds.isnan().tolist() == [True, True, False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Groups.of(PROMPT, -1), "answer must be an integer of 0 or more, got -1"),
        (lambda: Groups.of(PROMPT, 0, {"vision": [1]}), "further must have names other than"),
        (lambda: Groups.of(PROMPT, 0, {"a": [11]}), r"further must lie in 0 .. 10, got 11 .. 11"),
        (lambda: Groups.of(PROMPT, 0, {"a": [1], "b": [1]}), "further must claim each token once"),
        (lambda: Groups.of(PROMPT).keep(torch.tensor([6])), r"kept must lie in 0 .. 5, got 6"),
        (lambda: Groups.of(PROMPT).place("sound"), "name must be one of instruction, vision"),
        (lambda: Groups.of(PROMPT).frames([5]), "have an entry for each of the 6 vision tokens"),
        (
            lambda: Groups.of(Segment(9, VisualSpan(1, 5), text_inside=2)),
            "segment must say where its vision tokens lie",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()
