"""Needles, which frames can show: signs, link cards and coloured shapes."""

from __future__ import annotations

from dataclasses import dataclass

from timeviper_fast.errors import fail
from timeviper_fast.synthetic.glyphs import DIGITS, GLYPHS, LETTERS
from timeviper_fast.synthetic.shapes import SHAPES

__all__ = ["COLOURS", "KINDS", "Needle"]

KINDS = ("plain", "sign", "star", "ring", "heart", "link")
COLOURS = {
    "red": (225, 35, 45),
    "orange": (250, 140, 20),
    "yellow": (250, 230, 40),
    "green": (40, 170, 60),
    "cyan": (80, 225, 230),
    "blue": (50, 80, 235),
    "purple": (145, 50, 190),
    "pink": (255, 150, 200),
}


@dataclass(frozen=True)
class Needle:
    """A sign ("K7"), a link card ("KM", from K to M), or a coloured shape.

    Attributes:
        kind: sign, star, ring, heart or link: KINDS without "plain".
        text: for a sign a letter and a digit; for a link a letter, then a letter or digit.
        colour: for a shape, one of COLOURS.
    """

    kind: str
    text: str = ""
    colour: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS[1:]:
            fail("Needle", "kind", f"be one of {', '.join(KINDS[1:])}", self.kind)
        if self.kind in SHAPES:
            if self.colour not in COLOURS or self.text:
                rule = f"be one of {', '.join(COLOURS)}, and text empty, for a {self.kind}"
                fail("Needle", "colour", rule, (self.colour, self.text))
            return
        ends = DIGITS if self.kind == "sign" else GLYPHS
        fits = len(self.text) == 2 and self.text[0] in LETTERS and self.text[1] in ends
        if not fits or self.colour:
            rule = f"be two of {LETTERS} and {ends}, and colour empty, for a {self.kind}"
            fail("Needle", "text", rule, (self.text, self.colour))
