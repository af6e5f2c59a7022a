"""The pictures of the seeded world: plain frames, and needles that replace them.

Frame `i` of seed `s` is a function of `s` and `i`, independent of other draws, their order and the
process. A needle is drawn over the plain frame of its number, so it has that frame's background.
Lengths are in units of a picture 48 wide, at every size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from timeviper_fast.errors import fail
from timeviper_fast.synthetic.artefacts import compress, soften
from timeviper_fast.synthetic.cards import card, clutter
from timeviper_fast.synthetic.dice import bits, uniform
from timeviper_fast.synthetic.levels import LEVELS
from timeviper_fast.synthetic.needle import Needle
from timeviper_fast.synthetic.pen import SIDE, Pen

__all__ = ["World"]


_FRAME, _LAYOUT, _NOISE = 0, 1, 2  # streams of random numbers
_SHOT = 32  # frames that share a moving background
_TURN = 1 << 10  # steps of a full turn in _SINE
_SINE = np.rint(256 * np.sin(2 * math.pi * np.arange(_TURN) / _TURN)).astype(np.float32)


class World:
    """Draws the frames of a seed.

    Args:
        seed: any integer.
        level: "study", or "hard" with moving backgrounds, varying cards and codec artefacts.
        lookalike: share of plain frames with a look-alike card; None takes the level's.
    """

    def __init__(self, seed: int, level: str = "study", lookalike: float | None = None) -> None:
        if level not in LEVELS:
            fail("World", "level", f"be one of {', '.join(LEVELS)}", level)
        self.seed, self.level, self.name = seed, LEVELS[level], level
        if lookalike is not None:
            self.level = replace(self.level, lookalike=lookalike)

    def render(
        self,
        numbers: Sequence[int] | np.ndarray,
        needles: Sequence[Needle | None] | None = None,
        size: int = SIDE,
    ) -> np.ndarray:
        """Frames by number: (n, size, size, 3) uint8 RGB.

        Args:
            numbers: frame numbers from 0, in any order.
            needles: the needle of each frame, or None for a plain frame. By default all are plain.
            size: pixels per side, a multiple of 48. Larger pictures show the same scene.
        """
        if size < SIDE or size % SIDE:
            fail("World", "size", f"be a multiple of {SIDE}", size)
        numbers = np.asarray(numbers, np.int64)
        needles = [None] * len(numbers) if needles is None else needles
        if len(needles) != len(numbers):
            fail("World", "needles", f"have one entry per frame ({len(numbers)})", len(needles))
        level = self.level
        shot_of = _SHOT if level.moving else 1
        base, time = numbers // shot_of, (numbers % shot_of).astype(np.int32)
        shot = uniform(self.seed, _FRAME, base, 64)
        own = uniform(self.seed, _LAYOUT, numbers, 32)
        frames = _waves(shot, time, size)
        pen = Pen(size)
        for i, needle in enumerate(needles):
            clutter(pen, frames[i], shot[i], int(time[i]), level)
            card(pen, frames[i], own[i], needle, level)
        frames = soften(frames, _between(level.soften, own[:, 20]))
        if level.gain != (1, 1):
            frames *= _between(level.gain, own[:, 21])[:, None, None, None]
            frames += _between(level.shift, own[:, 22])[:, None, None, None]
        self._add_noise(frames, numbers, _between(level.noise, own[:, 23]))
        compress(frames, _between(level.quantise, own[:, 24]))
        np.clip(np.rint(frames, out=frames), 0, 255, out=frames)
        return np.ascontiguousarray(frames.astype(np.uint8).transpose(0, 2, 3, 1))

    def _add_noise(self, frames: np.ndarray, numbers: np.ndarray, most: np.ndarray) -> None:
        """Add uniform noise per pixel of the 48-pixel picture, in place."""
        words = bits(self.seed, _NOISE, numbers, SIDE * SIDE * 3 // 8)
        bytes_ = words.astype("<u8", copy=False).view(np.uint8).reshape(-1, 3, SIDE, SIDE)
        noise = bytes_.astype(np.float32)
        noise -= 127.5
        noise *= (most / 127.5)[:, None, None, None]
        times = frames.shape[2] // SIDE
        frames += noise if times == 1 else noise.repeat(times, 2).repeat(times, 3)


def _between(limits: tuple[float, float], draw: np.ndarray) -> np.ndarray:
    low, high = limits
    return (low + (high - low) * draw).astype(np.float32)


def _waves(draws: np.ndarray, time: np.ndarray, size: int) -> np.ndarray:
    """Two colours mixed by the sum of two waves: (n, 3, size, size) float32; integer phases."""
    at = ((np.arange(size) + 0.5) * (256 * SIDE / size)).astype(np.int32)
    mix = np.zeros((len(draws), size, size), np.float32)
    for first in (6, 11):
        # one turn of _SINE in 12 picture units or more; up to 20 steps of it per frame
        slopes = np.rint((draws[:, first : first + 2] - 0.5) * 2 * _TURN / 12).astype(np.int32)
        speed = np.rint((draws[:, first + 2] - 0.5) * 40).astype(np.int32)
        phase = np.rint(draws[:, first + 3] * _TURN).astype(np.int32) + speed * time
        # whole turns are 2^16, so 16-bit sums wrap around as angles do
        across = (slopes[:, :1] * at >> 2).astype(np.uint16)
        down = ((slopes[:, 1:] * at >> 2) + (phase[:, None] << 6)).astype(np.uint16)
        mix += _SINE[(down[:, :, None] + across[:, None, :]) >> 6]
    mix += 512
    mix *= 1 / 1024
    dark = (20 + 200 * draws[:, 0:3, None, None]).astype(np.float32)
    light = (20 + 200 * draws[:, 3:6, None, None]).astype(np.float32)
    frames = (light - dark) * mix[:, None]
    frames += dark
    return frames
