"""The kinds of sources: the rules for their rows, and questions for rows with only a caption."""

from __future__ import annotations

from random import Random

from timeviper_fast.dataset.rows import Row
from timeviper_fast.text.messages import Message

__all__ = ["KINDS", "kind_faults", "messages_of"]

# {} is "video" or "image"; for "grounding" it is the caption to find
_QUESTIONS = {
    "caption": (
        "What happens in this {}?",
        "Say in a sentence what the {} shows.",
        "Give a short description of this {}.",
        "What is this {} about?",
        "Briefly, what can one see in the {}?",
        "Sum up the {}.",
    ),
    "detailed": (
        "Describe the {} in detail.",
        "Write down everything that can be seen in this {}.",
        "Describe this {} for somebody who cannot see it, with all its details.",
        "Give a thorough description of the {}.",
        "Tell at length what this {} shows, in the order in which it appears.",
        "What does the {} show? Leave nothing out.",
    ),
    "grounding": (
        "When does this happen in the video: {}?",
        "From which second to which second can one see this: {}?",
        "Find this in the video and give its start and end in seconds: {}.",
        "At what time does the video show this: {}?",
        "Give the part of the video that this sentence describes: {}.",
    ),
}
KINDS = ("caption", "conversation", "detailed", "grounding", "text")


def kind_faults(row: Row, kind: str) -> list[str]:
    """The reasons why a row does not fit its source's kind."""
    faults = []
    if kind == "text" and row.media is not None:
        faults.append("a row of kind 'text' must have no video or image")
    if kind in _QUESTIONS and row.media is None:
        faults.append(f"a row of kind {kind!r} must have a video or an image")
    if kind == "grounding" and row.span is None:
        faults.append("a row of kind 'grounding' must have a span")
    if kind not in _QUESTIONS and not row.messages:
        faults.append(f"a row of kind {kind!r} must have conversations or messages")
    return faults


def messages_of(row: Row, kind: str, seed: int) -> tuple[Message, ...]:
    """The row's conversation; with only a caption, a question in a random wording and the caption.

    The answer to a grounding question is "From 3.2 to 8.0 seconds.".
    """
    if row.messages:
        return row.messages
    question, answer = Random(seed).choice(_QUESTIONS[kind]), row.caption.strip()
    if kind == "grounding" and row.span:
        question = question.format(answer.rstrip(".?!"))
        answer = f"From {row.span[0]:.1f} to {row.span[1]:.1f} seconds."
    else:
        question = question.format("image" if row.is_image else "video")
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}
