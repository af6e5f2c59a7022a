"""Messages of a conversation, and what they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from timeviper_fast.errors import ArgumentError, fail

__all__ = ["Message", "check_turns", "expect_unicode"]

_ROLES = ("user", "assistant")

# {"role": "user" or "assistant" (in front of them "system" once, where the template has one),
# "content": text}
Message = Mapping[str, str]


def check_turns(
    messages: Sequence[Message], open_answers: bool = False, system: bool = False
) -> None:
    """Check messages; `system` allows a system message in front."""
    if not isinstance(messages, (list, tuple)):
        _refuse_question(type(messages).__name__)
    if system and messages and _is_system(messages[0]):
        expect_unicode("system message", messages[0].get("content"))
        messages = messages[1:]
    if not messages:
        raise ArgumentError("prompt", "question", "not be empty or blank", "no messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            _refuse_question(f"{type(message).__name__} as turn {i}")
        role, content = message.get("role"), message.get("content")
        if role != _ROLES[i % 2]:
            rule = "take turns, user first, then assistant"
            raise ArgumentError("prompt", "messages", rule, f"{role!r} as turn {i}")
        if not isinstance(content, str):
            kind = type(content).__name__
            raise ArgumentError("prompt", "content", "be a string", f"{kind} in turn {i}")
        expect_unicode("question" if role == "user" else "answer", content)
        if role == "user" and not content.strip():
            fail("prompt", "question", "not be empty or blank", content)
        open_answer = role == "assistant" and not content and i < len(messages) - 1
        if open_answer and not open_answers:
            raise ArgumentError(
                "prompt", "answer", "not be empty before the last turn", f"turn {i}"
            )


def _is_system(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "system"


def expect_unicode(name: str, text: Any) -> None:
    """Refuse lone surrogates: Python makes them of command-line bytes that are not UTF-8."""
    if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
        fail("prompt", name, "be valid UTF-8 text", text)


def _refuse_question(value: str) -> NoReturn:
    rule = "be text, or a list of messages {role, content}"
    raise ArgumentError("prompt", "question", rule, value)
