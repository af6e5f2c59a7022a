"""Held-out wordings are new sentences about the same things."""

from __future__ import annotations

import re

from timeviper_fast.synthetic.wordings import HELD_OUT_WORDINGS, WORDINGS


def test_no_wording_is_drawn_and_held_out():
    drawn = {text for texts in WORDINGS.values() for text in texts}
    held = {text for texts in HELD_OUT_WORDINGS.values() for text in texts}
    assert not drawn & held
    assert len(drawn) == sum(map(len, WORDINGS.values()))
    assert len(held) == sum(map(len, HELD_OUT_WORDINGS.values()))


def test_each_task_has_several_wordings_of_each():
    assert list(WORDINGS) == list(HELD_OUT_WORDINGS)
    for task in WORDINGS:
        assert len(WORDINGS[task]) >= 6
        assert len(HELD_OUT_WORDINGS[task]) >= 3


def test_the_wordings_of_a_task_name_the_same_things():
    for task, texts in WORDINGS.items():
        names = {frozenset(re.findall(r"{(\w+)}", t)) for t in texts + HELD_OUT_WORDINGS[task]}
        assert len(names) == 1, task
