"""The sentences that ask each task, and those that training never sees."""

from __future__ import annotations

__all__ = ["HELD_OUT_WORDINGS", "WORDINGS"]

# {subject} is a shape or "sign", {other} another one, {letter} the first letter of a chain
WORDINGS: dict[str, tuple[str, ...]] = {
    "sign": (
        "What does the sign say?",
        "Read the sign.",
        "What is written on the sign?",
        "Which text is on the sign?",
        "Tell me what the sign says.",
        "What can be read on the sign?",
    ),
    "colour": (
        "What colour is the {subject}?",
        "Which colour does the {subject} have?",
        "Name the colour of the {subject}.",
        "What is the colour of the {subject}?",
        "Tell me the colour of the {subject}.",
        "In which colour is the {subject} drawn?",
    ),
    "chain": (
        "Follow {letter}.",
        "Follow the cards from {letter} to the digit.",
        "Start at {letter} and follow the cards.",
        "Where do the cards lead from {letter}?",
        "Go from card to card, starting with {letter}.",
        "Which way do the cards go from {letter}?",
    ),
    "count": (
        "How many {subject}s are there?",
        "Count the {subject}s.",
        "How often is there a {subject}?",
        "How many {subject}s does the video show?",
        "Tell me the number of {subject}s.",
        "How many frames show a {subject}?",
    ),
    "when": (
        "When does the {subject} appear?",
        "At which part of the video is the {subject}?",
        "When can the {subject} be seen?",
        "Tell me when the {subject} is there.",
        "How far into the video is the {subject}?",
        "When is the {subject} shown?",
    ),
    "order": (
        "Is the {subject} before the {other}?",
        "Does the {subject} come before the {other}?",
        "Is the {subject} seen earlier than the {other}?",
        "Tell me whether the {subject} comes before the {other}.",
        "Is the {subject} shown first, and then the {other}?",
        "Does the {subject} appear earlier than the {other}?",
    ),
}

HELD_OUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "sign": (
        "What do you read on the sign?",
        "Which text does the sign say?",
        "Tell me what is written on the sign.",
    ),
    "colour": (
        "Tell me which colour the {subject} has.",
        "Which colour is the {subject}?",
        "What colour does the {subject} have?",
    ),
    "chain": (
        "Start with {letter} and go from card to card.",
        "Where do the cards go from {letter}?",
        "Follow the cards, starting at {letter}.",
    ),
    "count": (
        "Tell me how many {subject}s there are.",
        "What is the number of {subject}s?",
        "How many {subject}s can be seen?",
    ),
    "when": (
        "Tell me when the {subject} appears.",
        "At which part of the video does the {subject} appear?",
        "When is the {subject} seen?",
    ),
    "order": (
        "Tell me whether the {subject} is before the {other}.",
        "Does the {subject} appear before the {other}?",
        "Is the {subject} shown earlier than the {other}?",
    ),
}
