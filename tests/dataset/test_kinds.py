"""Each kind of source reports missing fields, and adds a question to rows with only a caption."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.dataset.common import turns
from timeviper_fast.dataset.kinds import KINDS, kind_faults, messages_of
from timeviper_fast.dataset.rows import Row

FILM = Path("a.mp4")
TALK = turns("What?", "That.")


@pytest.mark.parametrize(
    ("kind", "row", "faults"),
    [
        ("conversation", Row(TALK), []),
        ("conversation", Row((), FILM, caption="A dog."), ["a row of kind 'conversation' must have conversations or messages"]),
        ("text", Row(TALK), []),
        ("text", Row(TALK, FILM), ["a row of kind 'text' must have no video or image"]),
        ("caption", Row((), FILM, caption="A dog."), []),
        ("caption", Row(TALK), ["a row of kind 'caption' must have a video or an image"]),
        ("grounding", Row(TALK, FILM, span=(1, 2)), []),
        ("grounding", Row(TALK, FILM), ["a row of kind 'grounding' must have a span"]),
    ],
)  # fmt: skip
def test_what_a_row_lacks(kind: str, row: Row, faults: list[str]) -> None:
    assert kind in KINDS
    assert kind_faults(row, kind) == faults


def test_a_caption_is_asked_for_in_several_wordings() -> None:
    film, picture = Row((), FILM, caption=" A dog. "), Row((), FILM, True, caption="A dog.")
    for kind in ("caption", "detailed"):
        asked = {messages_of(film, kind, seed)[0]["content"] for seed in range(40)}
        assert len(asked) > 4
        assert all("video" in question for question in asked)
        assert messages_of(film, kind, 3)[1]["content"] == "A dog."
    assert "image" in messages_of(picture, "caption", 0)[0]["content"]
    assert messages_of(Row(TALK, FILM), "caption", 0) == TALK


def test_a_caption_with_a_span_asks_for_the_time() -> None:
    question, answer = messages_of(
        Row((), FILM, caption="A dog runs.", span=(2, 4.25)), "grounding", 1
    )
    assert "A dog runs" in question["content"]
    assert answer["content"] == "From 2.0 to 4.2 seconds."
    asked = [
        messages_of(Row((), FILM, caption="It runs.", span=(2, 3)), "grounding", n)
        for n in range(20)
    ]
    assert not [turn for turn, _ in asked if re.search(r"\.[.?]", turn["content"])]
