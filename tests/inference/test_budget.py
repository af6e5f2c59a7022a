"""Needs of one request: what is on the device, and what goes to the host."""

from __future__ import annotations

from dataclasses import replace

from timeviper_fast.inference.budget import RESERVE, Asked, Needs, choices
from timeviper_fast.presets import preset

ASKED = Asked(preset("tiny"), 100, 20, 60, 2, 16, "float32", None, None, None)


def test_the_host_gives_its_rows_to_the_stage_of_one_question_at_a_time():
    needs = Needs(replace(ASKED, frames=5000))
    moved = needs.session["rows"] + needs.session["dropped_kv"]
    assert needs.resident(False) - needs.resident(True) == moved
    # with small blocks the stage is the peak
    here, there = (needs.of(64, 8, on_host) for on_host in (False, True))
    assert there[1]["question"] - here[1]["question"] == needs.session["rows"]


def test_needs_grow_with_the_chunk_and_the_batch_up_to_the_video():
    needs = Needs(ASKED)
    assert needs.of(8192, 256, False) == needs.of(2000, 104, False)
    for choice in ((1024, 8), (512, 16)):
        assert needs.of(512, 8, False)[0] <= needs.of(*choice, False)[0]
    assert needs.resident(False) == sum(needs.exact.values()) + RESERVE


def test_two_questions_hold_two_forks():
    one = Needs(replace(ASKED, questions=1))
    assert Needs(ASKED).exact["forks"] == 2 * one.exact["forks"]
    assert Needs(ASKED).exact["session"] == one.exact["session"]


def test_what_is_fixed_is_not_chosen():
    assert list(choices(replace(ASKED, chunk=100, frame_batch=3))) == [
        (False, 100, 3),
        (True, 100, 3),
    ]
    assert next(choices(ASKED)) == (False, 8192, 256)
