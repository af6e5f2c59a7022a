"""How an answer is read: by the paper's rule, and by a strict one.

Neither draws a letter at random. An answer that a rule cannot read is wrong, and is counted.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from timeviper_fast.evaluation.sets.row import SetRow, Span

__all__ = ["RULES", "Rule", "iou", "is_unread"]

_NUMBER = r"(\d+(?:\.\d+)?)"
_PAPER_SPAN = re.compile(rf"{_NUMBER} (?:to|and) {_NUMBER}")
_SECONDS = r"\s*(?:s|sec|secs|seconds)?\.?\s*"
_STRICT_SPAN = re.compile(
    # no part of a clock's time, 1:05, nor of a number with a comma, 1,200
    rf"(?<![\d.,:-]){_NUMBER}{_SECONDS}(?:to|and|-|\u2013){_SECONDS}{_NUMBER}(?![\d]|[:,]\d)",
    re.IGNORECASE,
)
# "B", "(B)", "B)", "B. red", "B, red", "b: red", and "B" with a line behind it
_LEADING = re.compile(r"\(?([A-Za-z])(?:[).:,]+(?:\s|$)|\s*(?:\n|$))")
# "the answer is B.", "Answer: (B)", "Option B", "I choose B, because"
_STATED = re.compile(
    r"\b(?:answer|option|choice|choose|pick|select)(?:\s+is)?\s*:?\s*\(?([A-Z])"
    r"(?:[).:;!,]|\s*(?:\n|$)|\s+(?:because|since)\b)",
    re.IGNORECASE,
)
# "B or C", "A, B"
_SEVERAL = re.compile(r"\b([A-Z])\)?\s*(?:,|/|&|\band\b|\bor\b)\s*\(?([A-Z])\b")
# marks of bold and code, which models put around letters
_EMPHASIS = str.maketrans("", "", "*`")
_MARKED = re.compile(r"\(([A-Z])\)")


def _paper_letter(text: str, row: SetRow) -> str | None:
    """The first character, or the second behind "("; "A" for an empty answer."""
    text = text.strip()
    letter = (text[1:2] if text[:1] == "(" else text[:1]) or "A"
    return letter if letter in row.letters else None


def _strict_letter(text: str, row: SetRow) -> str | None:
    """The one letter that the answer states, at its start or as "the answer is B"; else that of the
    one option whose text it is, or whose letter and text. None for several letters, or for none."""
    text = text.translate(_EMPHASIS).strip()
    found = {match[1].upper() for match in _STATED.finditer(text)}
    found |= set(_MARKED.findall(text))
    found |= {letter for pair in _SEVERAL.findall(text) for letter in pair if letter in row.letters}
    if leading := _LEADING.match(text):
        found.add(leading[1].upper())
    if not found:
        said = _plain(text)
        pairs = [(a, _plain(option)) for a, option in zip(row.letters, row.texts)]
        found = {a for a, option in pairs if said in (option, f"{a.casefold()} {option}")}
    letter = found.pop() if len(found) == 1 else None
    return letter if letter is not None and letter in row.letters else None


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def _paper_span(text: str) -> Span | None:
    """The last "number to number" or "number and number", as it stands."""
    found = _PAPER_SPAN.findall(text)
    return (float(found[-1][0]), float(found[-1][1])) if found else None


def _strict_span(text: str) -> Span | None:
    """The only span of the answer, whose end must lie behind its start; a dash may join it too."""
    found = _STRICT_SPAN.findall(text)
    if len(found) != 1:
        return None
    start, end = map(float, found[0])
    return (start, end) if start < end else None


@dataclass(frozen=True)
class Rule:
    """A way to read answers.

    Attributes:
        letter: the letter of a text about a row with options, or None.
        span: the span (start, end) of a text, or None.
        reaches: whether an IoU counts as a hit at a threshold.
        sign: the same, as it is written: ">" or ">=".
    """

    letter: Callable[[str, SetRow], str | None]
    span: Callable[[str], Span | None]
    reaches: Callable[[float, float], bool]
    sign: str

    def read(self, text: str, row: SetRow) -> str | Span | None:
        """A letter, or for a row without options a span; None if the rule finds none."""
        return self.letter(text, row) if row.options else self.span(text)


RULES = {
    "paper": Rule(_paper_letter, _paper_span, operator.gt, ">"),
    "strict": Rule(_strict_letter, _strict_span, operator.ge, ">="),
}


def is_unread(text: str, row: SetRow) -> bool:
    """Whether no rule can read the answer; an empty one is unread, though the paper takes "A"."""
    return not text.strip() or all(rule.read(text, row) is None for rule in RULES.values())


def iou(one: Span | None, other: Span) -> float:
    """Intersection over union of two spans; 0 without a span, or if it ends before it starts."""
    if one is None or not one[0] < one[1]:
        return 0.0
    common = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, common) / (max(one[1], other[1]) - min(one[0], other[0]))
