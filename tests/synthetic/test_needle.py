"""A needle that the world cannot draw raises an error with the reason."""

from __future__ import annotations

import pytest

from timeviper_fast.synthetic.needle import KINDS, Needle


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("square",), "Needle: kind must be one of sign, star, ring, heart, link, got 'square'"),
        (("plain",), "Needle: kind must be one of"),
        (("star", "", "mauve"), "Needle: colour must be one of red, orange"),
        (("star", "K7", "red"), "text empty, for a star"),
        (("sign", "KM"), "Needle: text must be two of ABC"),
        (("sign", "I7"), "Needle: text must be two of ABC"),
        (("link", "7K"), "Needle: text must be two of ABC"),
        (("link", "KM", "red"), "colour empty, for a link"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(arguments, sentence):
    with pytest.raises(ValueError) as error:
        Needle(*arguments)
    assert sentence in str(error.value)


def test_every_kind_can_be_made():
    needles = [Needle("sign", "K7"), Needle("link", "KM"), Needle("link", "M4")]
    needles += [Needle(shape, colour="red") for shape in ("star", "ring", "heart")]
    assert {needle.kind for needle in needles} == set(KINDS[1:])
