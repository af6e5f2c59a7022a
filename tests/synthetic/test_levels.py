"""The ranges of the hard level contain those of the study level."""

from __future__ import annotations

from dataclasses import fields

from timeviper_fast.synthetic.levels import LEVELS


def test_hard_ranges_contain_the_ranges_of_study():
    study, hard = LEVELS["study"], LEVELS["hard"]
    for field in fields(study):
        easy, wide = getattr(study, field.name), getattr(hard, field.name)
        if isinstance(easy, tuple):
            assert wide[0] <= easy[0], field.name
            assert wide[1] >= easy[1], field.name
            assert wide != easy, field.name
    assert (study.moving, hard.moving) == (False, True)


def test_a_link_card_fits_the_picture_at_its_largest():
    """Its width is 15 cells, padding and borders."""
    for level in LEVELS.values():
        assert 15 * level.cell[1] + 8 <= 48
        assert 2 * level.radius[1] + 8 <= 48
