"""The pen changes exactly the pixels of what it draws."""

from __future__ import annotations

import numpy as np
import pytest

from timeviper_fast.synthetic.pen import Pen
from timeviper_fast.synthetic.shapes import PLAIN_SHAPES, cells

RED, BLUE = (200.0, 0.0, 0.0), (0.0, 0.0, 200.0)


def blank(size=48):
    return np.full((3, size, size), 50, np.float32)


@pytest.mark.parametrize("size", [48, 144])
def test_a_shape_is_painted_around_its_centre(size):
    picture, unit = blank(size), size // 48
    Pen(size).shape(picture, PLAIN_SHAPES["square"], (10, 30), 5, RED)
    inside = picture[:, 27 * unit : 33 * unit, 7 * unit : 13 * unit]
    assert (inside == np.array(RED)[:, None, None]).all()
    picture[:, 25 * unit : 35 * unit, 5 * unit : 15 * unit] = 50
    assert (picture == 50).all()


def test_a_quarter_turn_of_a_cross_changes_nothing():
    pictures = [blank(), blank()]
    for picture, turn in zip(pictures, (0.0, np.pi / 2)):
        Pen(48).shape(picture, PLAIN_SHAPES["cross"], (24, 24), 9, RED, turn)
    np.testing.assert_allclose(*pictures, atol=1e-3)


def test_what_leaves_the_picture_is_cut_off():
    picture = blank()
    Pen(48).shape(picture, PLAIN_SHAPES["disc"], (-2, 47), 6, RED)
    assert picture[0, 46, 0] == RED[0]
    far = blank()
    Pen(48).shape(far, PLAIN_SHAPES["disc"], (-40, 90), 6, RED)
    assert (far == 50).all()


def test_a_card_has_a_border():
    picture = blank()
    Pen(48).card(picture, (24, 24), 20, 12, (RED, BLUE))
    assert picture[:, 24, 15].tolist() == list(RED)
    assert picture[:, 24, 17].tolist() == list(BLUE)
    assert picture[:, 24, 12].tolist() == [50, 50, 50]


def test_cells_are_painted_from_their_corner():
    picture = blank()
    Pen(48).cells(picture, cells("E"), (5, 9), 2, RED)
    painted = (picture[0] == RED[0]).nonzero()
    assert (painted[0].min(), painted[1].min()) == (9, 5)
    assert (painted[0].max(), painted[1].max()) == (9 + 13, 5 + 9)
