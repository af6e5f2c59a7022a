"""How a stored picture must be turned and mirrored to stand upright."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Orientation", "orientation_of"]

# Tangent of the largest angle, about one degree, that counts as a rounding error.
_TOLERANCE = 0.02


class Orientation(NamedTuple):
    """One of the eight ways to lay a rectangle on itself: transpose, then mirror the two axes."""

    transposed: bool = False
    mirrored_down: bool = False
    mirrored_across: bool = False

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """The picture (H, W, ...) as displayed; a view of the same memory."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.mirrored_down else 1, :: -1 if self.mirrored_across else 1]


def orientation_of(matrix: Sequence[int]) -> Orientation:
    """The orientation that a display matrix states.

    Args:
        matrix: nine fixed-point numbers a, b, u, c, d, v, x, y, w, as MP4 and FFmpeg store them: a
            pixel at (across, down) is shown at (a across + c down, b across + d down). Its scale
            is ignored.

    Raises:
        ValueError: the matrix turns by no multiple of 90 degrees, or shears.
    """
    a, b, _, c, d = (float(value) for value in matrix[:5])
    if not (a or b) or not (c or d):
        return Orientation()
    if abs(b) <= _TOLERANCE * abs(a) and abs(c) <= _TOLERANCE * abs(d):
        return Orientation(False, d < 0, a < 0)
    if abs(a) <= _TOLERANCE * abs(b) and abs(d) <= _TOLERANCE * abs(c):
        return Orientation(True, b < 0, c < 0)
    angle = math.degrees(math.atan2(b, a))
    raise ValueError(
        f"its display matrix turns the picture by {angle:.4g} degrees or shears it, and only "
        "multiples of 90 degrees and mirrorings are shown"
    )
