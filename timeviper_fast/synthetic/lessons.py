"""Frames with labels, for training and measuring the vision encoder.

A label row is (kind, first glyph, second glyph, colour): indices in KINDS, LETTERS, GLYPHS and
COLOURS, or IGNORE where the frame has none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from timeviper_fast.synthetic.dice import uniform
from timeviper_fast.synthetic.glyphs import DIGITS, GLYPHS, LETTERS
from timeviper_fast.synthetic.needle import COLOURS, KINDS, Needle
from timeviper_fast.synthetic.world import World

__all__ = ["IGNORE", "Lesson", "draw_needle", "labels_of", "lesson", "to_pixels"]

IGNORE = -100
_DRAWS = 4  # stream of random numbers
# A shot of a moving background has 32 frames, so this stride takes each frame from another shot.
_STRIDE = 33
# shares of links and signs among needles; the rest are shapes
_LINKS, _SIGNS = 0.45, 0.30


class Lesson(NamedTuple):
    """Frames and their labels.

    pixels: (n, 3, 48, 48) float32, normalised; labels: (n, 4) int64.
    """

    pixels: Tensor
    labels: Tensor


def lesson(worlds: dict[str, World], start: int, count: int, plain: float, hard: float) -> Lesson:
    """Lessons `start` to `start + count - 1`, each a function of the worlds' seed and its number.

    Args:
        worlds: {level: world}, all with the same seed.
        start, count: numbers of the lessons.
        plain: share of frames without a needle.
        hard: share of frames of level "hard".
    """
    numbers = np.arange(start, start + count)
    draws = uniform(worlds["study"].seed, _DRAWS, numbers, 6)
    needles = [None if row[0] < plain else draw_needle(row[1:5]) for row in draws]
    is_hard = draws[:, 5] < hard
    frames = np.empty((count, 48, 48, 3), np.uint8)
    for name, chosen in (("study", ~is_hard), ("hard", is_hard)):
        at = chosen.nonzero()[0]
        if len(at):
            frames[at] = worlds[name].render(_STRIDE * numbers[at], [needles[i] for i in at])
    return Lesson(to_pixels(frames), torch.tensor([labels_of(needle) for needle in needles]))


def draw_needle(draws: np.ndarray) -> Needle:
    """The needle that four random numbers in [0, 1) choose."""
    kind, first, second, colour = draws
    letter = LETTERS[int(first * len(LETTERS))]
    if kind < _LINKS:
        # Half of the links end in a digit, so that digits are about as frequent as letters.
        ends = DIGITS if colour < 0.5 else LETTERS
        return Needle("link", letter + ends[int(second * len(ends))])
    if kind < _LINKS + _SIGNS:
        return Needle("sign", letter + DIGITS[int(second * len(DIGITS))])
    shape = KINDS[2 + int(first * 3)]
    return Needle(shape, colour=list(COLOURS)[int(colour * len(COLOURS))])


def labels_of(needle: Needle | None) -> tuple[int, int, int, int]:
    """The label row of a frame with this needle."""
    if needle is None:
        return KINDS.index("plain"), IGNORE, IGNORE, IGNORE
    kind = KINDS.index(needle.kind)
    if needle.colour:
        return kind, IGNORE, IGNORE, list(COLOURS).index(needle.colour)
    return kind, LETTERS.index(needle.text[0]), GLYPHS.index(needle.text[1]), IGNORE


def to_pixels(frames: np.ndarray) -> Tensor:
    """(n, 48, 48, 3) uint8 -> (n, 3, 48, 48) float32 in [-1, 1], as `resize_normalize` gives it."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).to(torch.float32)
    return ((pixels / 255 - 0.5) / 0.5).contiguous()
