"""A conversation about a video is that of asking it whole."""

from __future__ import annotations

import pytest

from tests.inference.one_go import digest
from tests.inference.test_session import OPTIONS, QUESTIONS


@pytest.fixture(scope="module")
def session(model, video):
    return model.open(video, **OPTIONS)


def test_a_conversation_is_that_of_asking_it_whole(model, video, session):
    before, chat = digest(session._ended), session.chat()
    first = chat.ask(QUESTIONS[0], max_new_tokens=4)
    second = chat.ask(QUESTIONS[1], max_new_tokens=4)
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
    whole = session.ask(chat.messages[:3], max_new_tokens=4)
    assert first.text == session.ask(QUESTIONS[0], max_new_tokens=4).text
    assert (second.text, second.kept_seconds) == (whole.text, whole.kept_seconds)
    assert digest(session._ended) == before


def test_a_turn_that_fails_is_not_part_of_the_conversation(session):
    chat = session.chat()
    chat.ask(QUESTIONS[0], max_new_tokens=2)
    said = list(chat.messages)
    with pytest.raises(ValueError, match="question must not be empty"):
        chat.ask("  ")
    assert chat.messages == said
    chat.ask(QUESTIONS[2], max_new_tokens=2)


def test_a_turn_beyond_the_window_is_refused_before_it_is_read(session):
    chat = session.chat()
    chat.ask(QUESTIONS[0], max_new_tokens=2)
    said, read = list(chat.messages), []
    handle = session.model.backbone.layers[0].register_forward_hook(lambda *_: read.append(1))
    with pytest.raises(ValueError, match="fit the model's window"):
        chat.ask(QUESTIONS[1], max_new_tokens=10**7)
    handle.remove()
    assert (read, chat.messages) == ([], said)
