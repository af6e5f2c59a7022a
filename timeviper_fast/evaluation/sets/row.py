"""One question of a published set, whatever the set's format is."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

__all__ = ["LeftOut", "Place", "SetRow", "Span", "with_letters"]

Span = tuple[float, float]


@dataclass(frozen=True)
class Place:
    """The place of a question among the four of its group (Video-MME-v2).

    Attributes:
        group: name of the group.
        number: 1 to 4.
        structure: "relevance", or for a logical chain its structure without blanks, such as
            "[1,[2,3],4]".
    """

    group: str
    number: int
    structure: str


class LeftOut(NamedTuple):
    """A question of a file that is not asked; `where` is as in `SetRow`."""

    where: str


@dataclass(frozen=True)
class SetRow:
    """One question.

    Attributes:
        set: name of the set, as in `SETS`.
        id: name of the question; no two rows of a set have the same.
        where: the row as "file:line" or "file:row".
        video: the file, or a folder of frames; it may be missing.
        question: text without the options; for a span the sentence to find.
        options: lines as they are shown, such as "A. red" or "(A) red"; () asks for a span.
        answer: a letter, or (start, end) in seconds.
        groups: for each property, such as "task" or "duration", the row's values.
        start, end: the part of the video to show, in seconds; None for all.
        subtitles: their file, if there is one.
        subtitles_start: second of the subtitles at which the video starts.
        fps: frames per second of a folder of frames; None for a file.
        duration: seconds of the video, if the set tells them.
        spans: when the answer is shown, as (start, end) in seconds; () if the set does not tell.
        place: the place in a group of questions that are scored together.
    """

    set: str
    id: str
    where: str
    video: Path
    question: str
    options: tuple[str, ...]
    answer: str | Span
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    subtitles: Path | None = None
    subtitles_start: float = 0.0
    fps: float | None = None
    duration: float | None = None
    spans: tuple[Span, ...] = ()
    place: Place | None = None

    @property
    def letters(self) -> str:
        """The letters of the options: "ABCD" for four."""
        return string.ascii_uppercase[: len(self.options)]

    @property
    def texts(self) -> tuple[str, ...]:
        """The options without their letters."""
        return tuple(option.partition(" ")[2].strip() for option in self.options)


def with_letters(texts: Sequence[str]) -> tuple[str, ...]:
    """Options as they are shown: "A. red", "B. blue"."""
    return tuple(f"{a}. {text.strip()}" for a, text in zip(string.ascii_uppercase, texts))
