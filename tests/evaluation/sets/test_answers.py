"""Both rules on worked examples, with the published weaknesses of rules of this kind."""

from __future__ import annotations

import pytest

from tests.evaluation.sets.common import question, sentence
from timeviper_fast.evaluation.sets.answers import RULES, iou, is_unread


@pytest.mark.parametrize(
    ("text", "paper", "strict"),
    [
        # the forced prefix ends in "(", so an answer begins with its letter
        ("B) a blue kite", "B", "B"),
        ("B", "B", "B"),
        ("(B) a blue kite", "B", "B"),
        ("(B)", "B", "B"),
        ("B. a blue kite", "B", "B"),
        # an empty answer is A by the paper's rule
        ("", "A", None),
        (" ", "A", None),
        # a letter behind words is wrong by the paper's rule
        ("The answer is B", None, "B"),
        ("The answer is (B).", None, "B"),
        # the first letter of a sentence is no answer
        ("A man walks in, so the answer is C", "A", "C"),
        ("A man walks in", "A", None),
        ("b", None, "B"),
        # two letters are no answer
        ("I think B or C", None, None),
        ("B or C", "B", None),
        ("A. No: the answer is C.", "A", None),
        ("(B) or (C)", "B", None),
        # an option's text stands for its letter
        ("a blue kite", None, "B"),
        ("A drum.", "A", "C"),
        ("a green kite", None, None),
        # a letter that no option has
        ("E", None, None),
        ("The video shows a kite.", None, None),
        ("Because of the wind", "B", None),
        # what models write around a letter
        ("B\nBecause it is blue.", "B", "B"),
        ("Answer: B\nExplanation: it flies.", "A", "B"),
        ("The answer is B, because it is blue.", None, "B"),
        ("The answer is B because it is blue", None, "B"),
        ("B, a blue kite", "B", "B"),
        ("B a blue kite", "B", "B"),
        ("**B**", None, "B"),
        ("The answer is **B**.", None, "B"),
        ("I choose B.", None, "B"),
        ("No, the answer is B, not C", None, "B"),
        ("A, B", "A", None),
        ("The answer is B or C", None, None),
        ("The answer is a man", None, None),
        ("D.C. is shown", "D", None),
    ],
)
def test_letters(text, paper, strict):
    row = question()
    assert RULES["paper"].read(text, row) == paper
    assert RULES["strict"].read(text, row) == strict
    assert is_unread(text, row) == (not text.strip() or (paper is None and strict is None))


@pytest.mark.parametrize(
    ("text", "paper", "strict"),
    [
        ("24.3 to 30.4 seconds", (24.3, 30.4), (24.3, 30.4)),
        ("It happens between 2 and 7.5 seconds.", (2.0, 7.5), (2.0, 7.5)),
        # a dash is read by the strict rule alone
        ("24.3 - 30.4", None, (24.3, 30.4)),
        ("24.3s \u2013 30.4s", None, (24.3, 30.4)),
        # the paper's rule takes the last of two spans; the strict one takes neither
        ("1 to 3, or rather 5 to 9", (5.0, 9.0), None),
        # reversed: no overlap by the paper's rule, unread by the strict one
        ("9 to 5", (9.0, 5.0), None),
        ("at 12 seconds", None, None),
        # a clock's times and numbers with a comma are no seconds
        ("1:05 to 10:35", (5.0, 10.0), None),
        ("5,0 to 7,5", (0.0, 7.0), None),
        ("10 to 20, I think", (10.0, 20.0), (10.0, 20.0)),
        ("", None, None),
    ],
)
def test_spans(text, paper, strict):
    assert RULES["paper"].read(text, sentence()) == paper
    assert RULES["strict"].read(text, sentence()) == strict


def test_overlaps():
    assert iou((0.0, 10.0), (5.0, 15.0)) == 5 / 15
    assert iou((5.0, 15.0), (5.0, 15.0)) == 1.0
    assert iou((0.0, 1.0), (5.0, 15.0)) == 0.0
    assert iou((15.0, 5.0), (5.0, 15.0)) == 0.0
    assert iou((7.0, 7.0), (5.0, 15.0)) == 0.0
    assert iou(None, (5.0, 15.0)) == 0.0


def test_a_threshold_is_reached_by_the_strict_rule_alone():
    """upstream compares with >, others with >=."""
    assert not RULES["paper"].reaches(0.5, 0.5)
    assert RULES["strict"].reaches(0.5, 0.5)
    assert (RULES["paper"].sign, RULES["strict"].sign) == (">", ">=")
