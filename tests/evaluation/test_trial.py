"""Depths, their frames, and the judgement of answers."""

from __future__ import annotations

import pytest

from timeviper_fast.evaluation.trial import Probe, Trial, depth_of, frame_at


def probe(truth="star red", needed=(3,), options=()):
    return Probe("colour", "Which?", truth, needed, 0.5, options=options)


def test_depths_go_from_the_first_frame_to_the_last():
    assert [frame_at(depth_of(i, 11), 64) for i in (0, 5, 10)] == [0, 31, 63]
    assert depth_of(0, 1) == 0.5
    for frames in (11, 64, 1000, 10_000):
        places = [frame_at(depth_of(i, 11), frames) for i in range(11)]
        # int(depth * (frames - 1)) in whole numbers
        assert places == [i * (frames - 1) // 10 for i in range(11)]
    with pytest.raises(ValueError, match=r"lie in 0 \.\. 10"):
        depth_of(11, 11)


def test_open_answers_are_right_as_a_whole():
    assert all(map(probe().judge, ("star red", " Star red. ")))
    assert not any(map(probe().judge, ("red", "star", "star red star", "")))


def test_options_are_right_by_their_letter():
    asked = probe(truth="B", options=("red", "blue"))
    assert asked.prompt == "Which?\n(A) red\n(B) blue"
    assert asked.answer_prefix == "Best option: ("
    assert all(map(asked.judge, ("B", "B) blue", "b")))
    assert not any(map(asked.judge, ("A", "", "blue")))
    assert probe().prompt == "Which?"
    assert probe().answer_prefix == ""


def test_a_trial_knows_what_it_needs():
    trial = Trial(9, 0, {}, (probe(needed=(3, 5)), probe(needed=(1,))))
    assert trial.needed == {1, 3, 5}
