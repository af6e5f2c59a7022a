"""Cards lie inside the picture, and look-alikes have the level's frequency."""

from __future__ import annotations

import numpy as np
import pytest

from timeviper_fast.synthetic.cards import card, clutter
from timeviper_fast.synthetic.dice import uniform
from timeviper_fast.synthetic.levels import LEVELS
from timeviper_fast.synthetic.needle import Needle
from timeviper_fast.synthetic.pen import Pen

NEEDLES = [Needle("sign", "K7"), Needle("link", "MW"), Needle("heart", colour="blue")]


def drawn(draws, needle, level):
    """Whether each pixel of a grey picture has changed: (48, 48) bool."""
    picture = np.full((3, 48, 48), 127.3, np.float32)
    card(Pen(48), picture, draws, needle, level)
    return (picture != np.float32(127.3)).any(0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("needle", NEEDLES, ids=lambda needle: needle.kind)
def test_cards_are_whole(needle, level):
    """No card is cut off: each has the size of its draw."""
    level = LEVELS[level]
    for draws in uniform(3, 1, np.arange(50), 32):
        rows, columns = drawn(draws, needle, level).nonzero()
        cell = level.cell[0] + (level.cell[1] - level.cell[0]) * draws[2]
        radius = level.radius[0] + (level.radius[1] - level.radius[0]) * draws[2]
        height = {"heart": 2 * radius}.get(needle.kind, 7 * cell) + 8
        width = {"heart": 2 * radius, "sign": 11 * cell, "link": 15 * cell}[needle.kind] + 8
        assert abs(rows.max() + 1 - rows.min() - height) < 2
        assert abs(columns.max() + 1 - columns.min() - width) < 2


@pytest.mark.parametrize("level", LEVELS)
def test_lookalikes_come_as_often_as_the_level_says(level):
    draws = uniform(3, 1, np.arange(4000), 32)
    share = np.mean([drawn(row, None, LEVELS[level]).any() for row in draws])
    assert abs(share - LEVELS[level].lookalike) < 0.03


def test_needles_of_one_kind_differ_where_they_should():
    """A sign's text and a shape's colour change the picture; the same draw gives the same card."""
    draws = uniform(3, 1, np.arange(1), 32)[0]
    pictures = []
    for needle in (Needle("sign", "K7"), Needle("sign", "K8"), Needle("sign", "K7")):
        picture = np.zeros((3, 48, 48), np.float32)
        card(Pen(48), picture, draws, needle, LEVELS["study"])
        pictures.append(picture)
    assert (pictures[0] != pictures[1]).any()
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_clutter_moves_with_time_and_stays_near_the_picture():
    draws = uniform(3, 0, np.arange(200), 64)
    level, moved = LEVELS["hard"], 0
    for row in draws:
        pictures = np.full((2, 3, 48, 48), 127.3, np.float32)
        for time, picture in enumerate(pictures):
            clutter(Pen(48), picture, row, 9 * time, level)
        moved += bool((pictures[0] != pictures[1]).any())
    # one video in five has no shape
    assert 0.7 < moved / 200 < 0.9
