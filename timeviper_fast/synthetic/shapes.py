"""The share of each pixel that a shape or a row of glyphs covers, at any resolution.

Shapes are signed distances (negative inside, in units of the picture) of points x, y from the
shape's centre; y grows downwards. `coverage` turns them into shares in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from timeviper_fast.synthetic.glyphs import ROWS, bitmap

__all__ = ["PLAIN_SHAPES", "SHAPES", "Distance", "Point", "cells", "coverage", "ink", "plate"]

Point = tuple[float, float]
Distance = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def coverage(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Share of each pixel inside a shape; `pixel` is a pixel's side in units of the distance."""
    share = distance * np.float32(-1 / pixel)
    share += 0.5
    return np.minimum(np.maximum(share, 0, out=share), 1, out=share)


def plate(x: np.ndarray, y: np.ndarray, width: float, height: float, corner: float) -> np.ndarray:
    """A rectangle with rounded corners."""
    right, down = np.abs(x) - (width / 2 - corner), np.abs(y) - (height / 2 - corner)
    outside = np.sqrt(np.maximum(right, 0) ** 2 + np.maximum(down, 0) ** 2)
    return outside + np.minimum(np.maximum(right, down), 0) - corner


def cells(text: str) -> np.ndarray:
    """(7, columns) float32, 1 where the glyphs of `text` have ink, one empty column between two."""
    gap = np.zeros((ROWS, 1), np.float32)
    return np.hstack([part for sign in text for part in (bitmap(sign), gap)][:-1])


def ink(
    bits: np.ndarray, corner: Point, cell: float, pixel: float, box: tuple[slice, slice]
) -> np.ndarray:
    """Share of each pixel that the cells with ink cover: float32, (rows, columns) of the box.

    Args:
        bits: (rows, columns), as returned by `cells`.
        corner: left and top of the first cell; cell: side of a cell; both in picture units.
        pixel: side of a pixel in picture units.
        box: rows and columns of the picture.
    """
    rows = _overlap(corner[1], cell, bits.shape[0], pixel, box[0])
    return rows @ bits @ _overlap(corner[0], cell, bits.shape[1], pixel, box[1]).T


def _overlap(start: float, cell: float, count: int, pixel: float, pixels: slice) -> np.ndarray:
    """(pixels, count) float32: share of each pixel's interval inside each cell's interval."""
    low = np.arange(pixels.start, pixels.stop, dtype=np.float32)[:, None] * pixel
    first = start + cell * np.arange(count, dtype=np.float32)
    shared = np.minimum(low + pixel, first + cell) - np.maximum(low, first)
    return np.maximum(shared, 0, out=shared) / pixel


def _disc(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - r


def _square(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8 * r


def _triangle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.maximum(y, 0.866 * np.abs(x) - 0.5 * y) - 0.5 * r


def _cross(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    across, along = np.abs(x), np.abs(y)
    flat = np.maximum(across - r, along - 0.3 * r)
    return np.minimum(flat, np.maximum(along - r, across - 0.3 * r))


def _star(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """A pentagram: points inside at least four of the five half planes that its lines bound."""
    most, second = np.full((2, *x.shape), -np.inf, np.float32)
    for k in range(5):
        angle = 2 * math.pi * k / 5 - math.pi / 2
        line = math.cos(angle) * x + math.sin(angle) * y
        second = np.maximum(second, np.minimum(most, line))
        most = np.maximum(most, line)
    return second - 0.309 * r


def _ring(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.75 * r) - 0.25 * r


def _heart(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """A square on its tip and a disc over each of its upper sides."""
    x, y, half = np.abs(x), y + 0.1 * r, 0.8 * r
    tip = (x + np.abs(y) - half) * 0.7071
    disc = np.sqrt((x - half / 2) ** 2 + (y + half / 2) ** 2) - 0.7071 * half
    return np.minimum(tip, disc)


PLAIN_SHAPES: dict[str, Distance] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
SHAPES: dict[str, Distance] = {"star": _star, "ring": _ring, "heart": _heart}
