"""Shapes and glyphs cover their geometric area at every resolution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from timeviper_fast.synthetic.shapes import (
    PLAIN_SHAPES,
    SHAPES,
    cells,
    coverage,
    ink,
    plate,
)

RADIUS = 10.0
# area of each shape of radius 1
AREAS = {
    "disc": math.pi,
    "square": 1.6**2,
    "triangle": 3 * math.sqrt(3) / 4,
    "cross": 2 * 2 * 0.6 - 0.6**2,
    # ten triangles between the centre, a tip, and an inner corner at 0.382 of the radius
    "star": 10 * 0.5 * 0.382 * math.sin(math.pi / 5),
    "ring": math.pi * (1 - 0.25),
    # a square of diagonal 1.6, and two half discs on sides of 1.6 / sqrt(2)
    "heart": 1.6**2 / 2 + math.pi * (0.8 / math.sqrt(2)) ** 2,
}


def grid(size):
    at = (np.arange(size, dtype=np.float32) + 0.5) * 48 / size - 24
    return at[None, :], at[:, None]


@pytest.mark.parametrize("size", [48, 192])
@pytest.mark.parametrize("name", AREAS)
def test_shapes_have_their_area(name, size):
    x, y = np.broadcast_arrays(*grid(size))
    share = coverage((PLAIN_SHAPES | SHAPES)[name](x, y, RADIUS), 48 / size)
    assert share.sum() * (48 / size) ** 2 == pytest.approx(AREAS[name] * RADIUS**2, rel=0.04)


def test_star_and_heart_stand_upright():
    """The star has a tip at the top and none at the bottom; the heart is the other way round."""
    x, y = np.zeros(2, np.float32), np.array([-9.5, 9.5], np.float32)
    assert (SHAPES["star"](x, y, RADIUS) < 0).tolist() == [True, False]
    # between the two round tops, on one of them, and at the tip
    x, y = np.array([0, 4, 0], np.float32), np.array([-9.5, -9.5, 6.5], np.float32)
    assert (SHAPES["heart"](x, y, RADIUS) < 0).tolist() == [False, True, True]


def test_a_plate_has_the_area_of_a_rectangle_without_its_corners():
    x, y = grid(480)
    area = (coverage(plate(x, y, 20, 10, 3), 0.1)).sum() * 0.01
    assert area == pytest.approx(20 * 10 - (4 - math.pi) * 9, rel=0.01)


@pytest.mark.parametrize("pixel", [1.0, 0.25])
@pytest.mark.parametrize("cell", [2.0, 1.7])
def test_ink_covers_the_area_of_its_cells(pixel, cell):
    bits, size = cells("K7"), int(48 / pixel)
    share = ink(bits, (3.3, 5.9), cell, pixel, (slice(0, size), slice(0, size)))
    assert share.sum() * pixel**2 == pytest.approx(bits.sum() * cell**2, rel=1e-4)
    assert share.max() <= 1 + 1e-5


def test_ink_on_whole_pixels_is_the_bitmap():
    bits = cells("B")
    share = ink(bits, (4, 6), 2.0, 1.0, (slice(0, 48), slice(0, 48)))
    np.testing.assert_array_equal(share[6:20, 4:14], bits.repeat(2, 0).repeat(2, 1))
