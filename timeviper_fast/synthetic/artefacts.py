"""Artefacts of lenses and codecs: softening, and quantised 8 x 8 DCT coefficients."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["compress", "soften"]

_BLOCK = 8


def soften(frames: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Mix each pixel with the mean of its 3 x 3 neighbours, edges repeated.

    Args:
        frames: (n, 3, height, width) float32.
        amount: (n,) float32, the mean's weight; 0 changes nothing, below 0 sharpens.
    """
    mean = _across(_down(frames))
    mean *= np.float32(1 / 9)
    mean -= frames
    mean *= amount[:, None, None, None]
    mean += frames
    return mean


def _down(frames: np.ndarray) -> np.ndarray:
    """Each row plus the rows above and below it; edge rows are repeated."""
    total = frames.copy()
    total[:, :, 1:] += frames[:, :, :-1]
    total[:, :, :-1] += frames[:, :, 1:]
    total[:, :, 0] += frames[:, :, 0]
    total[:, :, -1] += frames[:, :, -1]
    return total


def _across(frames: np.ndarray) -> np.ndarray:
    """Each column plus its two neighbours; edge columns are repeated."""
    total = frames.copy()
    total[..., 1:] += frames[..., :-1]
    total[..., :-1] += frames[..., 1:]
    total[..., 0] += frames[..., 0]
    total[..., -1] += frames[..., -1]
    return total


def _dct_matrix() -> np.ndarray:
    rows = np.arange(_BLOCK)[:, None]
    basis = np.cos(math.pi / _BLOCK * (np.arange(_BLOCK) + 0.5) * rows) * math.sqrt(2 / _BLOCK)
    basis[0] /= math.sqrt(2)
    return basis.astype(np.float32)


_DCT = _dct_matrix()
# high frequencies are stored more coarsely, as in JPEG and video codecs
_COARSER = (1 + 0.35 * (np.arange(_BLOCK)[:, None] + np.arange(_BLOCK))).astype(np.float32)


def compress(frames: np.ndarray, steps: np.ndarray) -> None:
    """Round the DCT coefficients of 8 x 8 blocks to multiples of a step, in place.

    Args:
        frames: (n, 3, height, width) float32; pixels beyond the last whole block stay.
        steps: (n,) float32, the step of the lowest frequency; below 4 the frame stays.
    """
    for frame, step in zip(frames, steps):
        if step >= 4:
            _compress_one(frame, float(step))


def _compress_one(frame: np.ndarray, step: float) -> None:
    height, width = (length // _BLOCK * _BLOCK for length in frame.shape[1:])
    whole = frame[:, :height, :width]
    blocks = whole.reshape(3, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    blocks = np.ascontiguousarray(blocks.swapaxes(2, 3))
    steps = step * _COARSER
    coefficients = np.rint(_DCT @ blocks @ _DCT.T / steps) * steps
    restored = _DCT.T @ coefficients @ _DCT
    whole[:] = restored.swapaxes(2, 3).reshape(3, height, width)
