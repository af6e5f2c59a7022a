"""A row knows its letters and the texts behind them."""

from __future__ import annotations

from tests.evaluation.sets.common import question, sentence


def test_letters_and_texts():
    row = question()
    assert row.letters == "ABCD"
    assert row.texts == ("a red kite", "a blue kite", "a drum", "nothing")
    assert question(options=("(A) one", "(B) two or three")).texts == ("one", "two or three")
    assert (sentence().letters, sentence().texts) == ("", ())
