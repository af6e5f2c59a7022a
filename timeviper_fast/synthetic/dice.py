"""Random numbers as functions of a seed and a place, independent of the order of drawing.

The mixing function is SplitMix64's finaliser (Steele, Lea, Flood 2014), in NumPy's uint64. Unlike
NumPy's generators, it gives the same numbers on every platform and in every version of NumPy.
"""

from __future__ import annotations

import numpy as np

__all__ = ["bits", "uniform"]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def bits(seed: int, stream: int, places: np.ndarray, count: int) -> np.ndarray:
    """Random 64-bit numbers of each place: (n,) integers from 0 -> (n, count) uint64.

    Args:
        seed: any integer; its low 64 bits are used.
        stream: a small number that separates the different uses of one place.
        places: integers such as frame numbers.
        count: numbers per place. The first of them are the same for every count.
    """
    key = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + _STEP)
    key = _mix(key ^ np.array([stream], np.uint64) * _STEP)
    rows = _mix(key ^ np.asarray(places).astype(np.uint64) * _FIRST)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return _mix(rows[:, None] + steps)


def uniform(seed: int, stream: int, places: np.ndarray, count: int) -> np.ndarray:
    """The same as float64 in [0, 1), uniform: (n, count)."""
    return (bits(seed, stream, places, count) >> np.uint64(11)) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
