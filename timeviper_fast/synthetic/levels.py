"""Levels of difficulty: the ranges of the random draws for each frame."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LEVELS", "Level"]


@dataclass(frozen=True)
class Level:
    """A level of difficulty; ranges are (low, high) of a uniform draw per frame.

    Attributes:
        moving: whether backgrounds and shapes move through shots of 32 frames; otherwise every
            frame has its own.
        aligned: whether cards lie on whole pixels of the 48-pixel picture.
        cell: side of a glyph's cell.
        radius: radius of a needle's shape.
        noise: largest deviation of a pixel, in 0..255.
        soften: weight of the 3 x 3 mean in a pixel; below 0 sharpens.
        gain, shift: contrast and brightness.
        quantise: step of the 8 x 8 DCT coefficients; steps below 4 leave the picture as it is.
        lookalike: share of plain frames with a card that holds no needle.
        clutter: most plain shapes in a frame.
    """

    moving: bool
    aligned: bool
    cell: tuple[float, float]
    radius: tuple[float, float]
    noise: tuple[float, float]
    soften: tuple[float, float]
    gain: tuple[float, float]
    shift: tuple[float, float]
    quantise: tuple[float, float]
    lookalike: float
    clutter: int


LEVELS = {
    "study": Level(
        moving=False,
        aligned=True,
        cell=(2.0, 2.0),
        radius=(9.0, 10.5),
        noise=(0, 20),
        soften=(-0.1, 0.2),
        gain=(1, 1),
        shift=(0, 0),
        quantise=(0, 0),
        lookalike=0.1,
        clutter=2,
    ),
    "hard": Level(
        moving=True,
        aligned=False,
        cell=(1.6, 2.4),
        radius=(7.0, 12.0),
        noise=(0, 48),
        soften=(-0.15, 0.6),
        gain=(0.65, 1.1),
        shift=(-25, 25),
        quantise=(-24, 24),
        lookalike=0.2,
        clutter=4,
    ),
}
