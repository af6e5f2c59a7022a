"""Mistakes in the options of ask are one sentence, before any frame is encoded."""

from __future__ import annotations

import pytest

from timeviper_fast.inference.request import Request


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"question": "  "}, "question must not be empty or blank"),
        ({"policy": "every:3"}, "policy"),
        ({"policy": 5}, "policy must be a string as 'fps:1', or an object that can choose, got 5"),
        ({"sampling": {}}, r"sampling must be a Sampling or None, got \{\}"),
        ({"max_new_tokens": True}, "max_new_tokens must be a positive number of tokens, got True"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a positive number of tokens, got 2.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive number of tokens, got 0"),
        ({"mention_duration": "no"}, "mention_duration must be True or False, got 'no'"),
        ({"chunk": 0}, "chunk must be a positive number of tokens, got 0"),
        ({"frame_batch": 0}, "frame_batch must be a positive number of frames, got 0"),
        ({"start": "soon"}, "^start must be a time of 0 or more, as seconds, mm:ss or hh:mm:ss"),
        ({"end": -1}, "^end must be a time of 0 or more, as seconds, mm:ss or hh:mm:ss, got -1$"),
        ({"start": "1:30", "end": 90}, r"^end must lie after the start \(01:30\), got 01:30$"),
        ({"start": 12}, r"^start must lie within the video \(00:00 to 00:12\), got 00:12$"),
        ({"end": "0:13"}, r"^end must lie within the video \(00:00 to 00:12\), got 00:13$"),
        ({"on_error": "ignore"}, "on_error"),
        ({"answer_prefix": 3}, "answer_prefix must be valid UTF-8 text, got 3"),
        ({"on_text": 5}, "ask: on_text must be a function or None, got 5"),
        ({"progress": 5}, "ask: progress must be a function or None, got 5"),
        ({"max_new_tokens": 400_000}, "must fit the model's window of 262144 tokens"),
    ],
)
def test_mistakes_are_one_sentence_before_any_frame_is_encoded(model, video, kwargs, words):
    seen: list[tuple] = []
    arguments = {"question": "What?", "progress": lambda *step: seen.append(step), **kwargs}
    with pytest.raises(ValueError, match=words):
        model.ask(video, **arguments)
    # opening the file is cheap; nothing behind it has begun
    assert {what for what, _, _ in seen} <= {"scan"}


def test_an_empty_earlier_answer_is_left_to_the_chat_template(model, video):
    """VideoChat-Flash's template takes it; a template that does not refuses it in `ask`."""
    turns = [("user", "What?"), ("assistant", ""), ("user", "And?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert Request(messages).question == messages
    with pytest.raises(ValueError, match="answer must not be empty before the last turn"):
        model.ask(video, messages)
