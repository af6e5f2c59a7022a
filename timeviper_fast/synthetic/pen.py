"""A pen for one picture: shapes, cards and glyphs, in units of a picture 48 wide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from timeviper_fast.synthetic.shapes import Distance, Point, coverage, ink, plate

__all__ = ["BORDER", "SIDE", "Colour", "Pen"]

SIDE = 48
BORDER = 2.0  # of a card
Colour = Sequence[float]


class Pen:
    """Draws on one picture (3, size, size) float32, in place."""

    def __init__(self, size: int) -> None:
        self.size, self.pixel = size, SIDE / size
        self.at = ((np.arange(size) + 0.5) * self.pixel).astype(np.float32)

    def box(self, centre: Point, reach: float) -> tuple[slice, slice]:
        """Rows and columns within `reach` of the centre."""
        low = [max(int((c - reach) / self.pixel) - 1, 0) for c in centre]
        high = [min(int((c + reach) / self.pixel) + 2, self.size) for c in centre]
        return slice(low[1], high[1]), slice(low[0], high[0])

    def shape(
        self,
        picture: np.ndarray,
        distance: Distance,
        centre: Point,
        radius: float,
        colour: Colour,
        turn: float = 0.0,
    ) -> None:
        rows, columns = self.box(centre, 1.5 * radius)
        x, y = self.at[columns][None, :] - centre[0], self.at[rows][:, None] - centre[1]
        if turn:
            c, s = math.cos(turn), math.sin(turn)
            x, y = c * x + s * y, c * y - s * x
        else:
            x, y = np.broadcast_arrays(x, y)
        self.fill(picture[:, rows, columns], coverage(distance(x, y, radius), self.pixel), colour)

    def card(
        self,
        picture: np.ndarray,
        centre: Point,
        width: float,
        height: float,
        colours: tuple[Colour, Colour],
    ) -> None:
        """Draw a rounded plate of the second colour with a border of the first."""
        rows, columns = self.box(centre, max(width, height) / 2)
        x, y = self.at[columns][None, :] - centre[0], self.at[rows][:, None] - centre[1]
        distance = plate(x, y, width, height, 3.0)
        part = picture[:, rows, columns]
        self.fill(part, coverage(distance, self.pixel), colours[0])
        self.fill(part, coverage(distance + BORDER, self.pixel), colours[1])

    def cells(
        self, picture: np.ndarray, bits: np.ndarray, corner: Point, cell: float, colour: Colour
    ) -> None:
        """Draw cells with ink, such as glyphs; `corner` is the left and top of the first cell."""
        height, width = bits.shape
        middle = (corner[0] + cell * width / 2, corner[1] + cell * height / 2)
        rows, columns = self.box(middle, cell * max(bits.shape) / 2)
        share = ink(bits, corner, cell, self.pixel, (rows, columns))
        self.fill(picture[:, rows, columns], share, colour)

    @staticmethod
    def fill(part: np.ndarray, share: np.ndarray, colour: Colour) -> None:
        change = np.array(colour, np.float32)[:, None, None] - part
        change *= share
        part += change
