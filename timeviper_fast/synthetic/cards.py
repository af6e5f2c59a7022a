"""The objects on the background: plain shapes, the needles' cards, and look-alike cards."""

from __future__ import annotations

import numpy as np

from timeviper_fast.synthetic.glyphs import ARROW
from timeviper_fast.synthetic.levels import Level
from timeviper_fast.synthetic.needle import COLOURS, Needle
from timeviper_fast.synthetic.pen import BORDER, SIDE, Colour, Pen
from timeviper_fast.synthetic.shapes import PLAIN_SHAPES, SHAPES, Point, cells

__all__ = ["card", "clutter"]

_WHITE, _YELLOW, _BLACK = (250, 250, 250), (255, 225, 30), (15, 15, 25)
_NAVY, _DARK = (20, 25, 90), (12, 12, 16)
# border and plate of the cards of signs, links and shapes
_CARDS: tuple[tuple[Colour, Colour], ...] = ((_BLACK, _WHITE), (_WHITE, _NAVY), (_WHITE, _DARK))
_PADDING = BORDER + 2
# the contents of look-alike cards
_LOOKALIKES = ("empty", "lines", *PLAIN_SHAPES)
_LINES = np.array([[1], [0], [0], [1], [0], [0], [1]], np.float32).repeat(11, axis=1)


def clutter(pen: Pen, picture: np.ndarray, draws: np.ndarray, time: int, level: Level) -> None:
    """Up to `level.clutter` plain shapes, which may extend beyond the picture."""
    kinds = list(PLAIN_SHAPES.values())
    for i in range(int(draws[15] * (level.clutter + 1))):
        kind, radius, turn, x, y, right, down, *rest = draws[16 + 10 * i : 26 + 10 * i]
        # up to 1 unit per frame, reflected at the edges
        places = [
            abs((2 * SIDE * at + (2 * speed - 1) * time) % (2 * SIDE) - SIDE)
            for at, speed in ((x, right), (y, down))
        ]
        shape = kinds[int(kind * len(kinds))]
        colour = [255 * part for part in rest]
        pen.shape(picture, shape, (places[0], places[1]), 4 + 8 * radius, colour, 6.2832 * turn)


def card(
    pen: Pen, picture: np.ndarray, draws: np.ndarray, needle: Needle | None, level: Level
) -> None:
    """Draw the needle's card; on some plain frames, draw a look-alike card."""
    if needle is None and draws[3] >= level.lookalike:
        return
    cell = _between(level.cell, draws[2])
    radius = _between(level.radius, draws[2])
    if needle is None:
        _lookalike(pen, picture, draws, cell, radius, level.aligned)
    elif needle.kind in SHAPES:
        centre = _place(pen, picture, draws, (2 * radius, 2 * radius), 2, level.aligned)
        pen.shape(picture, SHAPES[needle.kind], centre, radius, COLOURS[needle.colour])
    elif needle.kind == "sign":
        bits = cells(needle.text)
        corner = _text_corner(pen, picture, draws, bits, cell, 0, level.aligned)
        pen.cells(picture, bits, corner, cell, _BLACK)
    else:
        bits = cells(needle.text[0] + ARROW + needle.text[1])
        corner = _text_corner(pen, picture, draws, bits, cell, 1, level.aligned)
        first = bits.copy()
        first[:, 5:], bits[:, :5] = 0, 0
        pen.cells(picture, first, corner, cell, _YELLOW)
        pen.cells(picture, bits, corner, cell, _WHITE)


def _lookalike(
    pen: Pen, picture: np.ndarray, draws: np.ndarray, cell: float, radius: float, aligned: bool
) -> None:
    """Draw a card without a needle: empty, with lines in place of glyphs, or with a plain shape."""
    what = _LOOKALIKES[int(draws[4] * len(_LOOKALIKES))]
    style = int(draws[5] * len(_CARDS))
    text = (cell * (11 if style == 0 else 15), cell * 7)
    extent = (2 * radius, 2 * radius) if style == 2 else text
    centre = _place(pen, picture, draws, extent, style, aligned)
    colour = (
        list(COLOURS.values())[int(draws[6] * len(COLOURS))] if style == 2 else _CARDS[style][0]
    )
    if what in PLAIN_SHAPES:
        reach = min(extent) / 2
        pen.shape(picture, PLAIN_SHAPES[what], centre, reach, colour, 6.2832 * draws[7])
    elif what == "lines":
        extent = (cell * 11, cell * 7)
        pen.cells(picture, _LINES, _corner(centre, extent), cell, colour)


def _text_corner(
    pen: Pen,
    picture: np.ndarray,
    draws: np.ndarray,
    bits: np.ndarray,
    cell: float,
    style: int,
    aligned: bool,
) -> Point:
    """Draw a card around cells at a random place; returns left and top of the cells."""
    extent = (cell * bits.shape[1], cell * bits.shape[0])
    return _corner(_place(pen, picture, draws, extent, style, aligned), extent)


def _place(
    pen: Pen,
    picture: np.ndarray,
    draws: np.ndarray,
    extent: Point,
    style: int,
    aligned: bool,
) -> Point:
    """Draw a card around this width and height at a random place; returns its centre."""
    width, height = extent[0] + 2 * _PADDING, extent[1] + 2 * _PADDING
    left, top = draws[0] * (SIDE - width), draws[1] * (SIDE - height)
    if aligned:
        left, top = round(left), round(top)
    centre = (left + width / 2, top + height / 2)
    pen.card(picture, centre, width, height, _CARDS[style])
    return centre


def _corner(centre: Point, extent: Point) -> Point:
    return centre[0] - extent[0] / 2, centre[1] - extent[1] / 2


def _between(limits: tuple[float, float], draw: float) -> float:
    low, high = limits
    return low + (high - low) * draw
