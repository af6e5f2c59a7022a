"""The letters and digits can be told apart."""

from __future__ import annotations

from itertools import combinations

from timeviper_fast.synthetic.glyphs import ARROW, DIGITS, GLYPHS, LETTERS, ROWS, bitmap


def test_any_two_glyphs_differ_in_five_cells():
    assert len(set(GLYPHS)) == 34
    close = [a + b for a, b in combinations(GLYPHS, 2) if abs(bitmap(a) - bitmap(b)).sum() < 5]
    assert not close


def test_glyphs_fill_their_height():
    for sign in GLYPHS:
        assert bitmap(sign).shape == (ROWS, 5)
        assert bitmap(sign).any(1).all(), sign
    assert bitmap(ARROW).shape == (ROWS, 3)


def test_no_letter_is_also_a_digit():
    assert "I" not in LETTERS
    assert "O" not in LETTERS
    assert GLYPHS == LETTERS + DIGITS
