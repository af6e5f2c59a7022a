"""Turns of a conversation, and a system message in front of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from timeviper_fast.text.messages import check_turns, expect_unicode

USER, ANSWER, SYSTEM = (
    {"role": role, "content": content}
    for role, content in (("user", "What?"), ("assistant", ""), ("system", ""))
)


def test_turns_that_are_well_formed() -> None:
    check_turns([USER])
    check_turns([USER, ANSWER])
    check_turns([USER, ANSWER, USER], open_answers=True)
    # an empty system message says that there is none
    check_turns([SYSTEM, USER], system=True)


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ([SYSTEM, USER], {}, "take turns, user first, then assistant, got 'system' as turn 0"),
        ([SYSTEM, SYSTEM, USER], {"system": True}, "got 'system' as turn 0"),
        ([USER, ANSWER, USER], {}, "answer must not be empty before the last turn, got turn 1"),
        ([{"role": "system"}, USER], {"system": True}, "system message must be valid UTF-8 text"),
        ("What?", {}, "question must be text, or a list of messages {role, content}, got str"),
    ],
)
def test_turns_that_are_refused(messages: Any, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check_turns(messages, **options)


def test_lone_surrogates_are_no_text() -> None:
    with pytest.raises(ValueError, match="name must be valid UTF-8 text"):
        expect_unicode("name", "a\ud800")
