"""Softening and compression match their definitions."""

from __future__ import annotations

import numpy as np

from timeviper_fast.synthetic.artefacts import compress, soften


def noise(n=2, size=48):
    return np.random.default_rng(0).uniform(0, 255, (n, 3, size, size)).astype(np.float32)


def test_softening_mixes_in_the_mean_of_nine():
    frames = noise()
    around = frames[1, 2, 9:12, 19:22].mean()
    expected = 0.7 * frames[1, 2, 10, 20] + 0.3 * around
    soft = soften(frames, np.array([0, 0.3], np.float32))
    np.testing.assert_allclose(soft[1, 2, 10, 20], expected, rtol=1e-5)
    np.testing.assert_array_equal(soft[0], frames[0])


def test_softening_repeats_the_edges():
    flat = np.full((1, 3, 8, 8), 90, np.float32)
    np.testing.assert_allclose(soften(flat, np.array([0.5], np.float32)), 90, rtol=1e-6)


def cosines(block):
    """The 8 x 8 DCT by its definition."""
    at = np.arange(8)
    table = np.cos(np.pi / 8 * np.outer(at, at + 0.5)) * np.where(at, 0.5, 0.125**0.5)[:, None]
    return table @ block @ table.T


def test_compression_rounds_the_coefficients_of_blocks():
    frames, step = noise(1), 20.0
    before = cosines(frames[0, 1, 8:16, 40:48])
    compress(frames, np.array([step], np.float32))
    after = cosines(frames[0, 1, 8:16, 40:48])
    steps = step * (1 + 0.35 * np.add.outer(np.arange(8), np.arange(8)))
    np.testing.assert_allclose(after, np.rint(before / steps) * steps, atol=0.01)


def test_small_steps_leave_the_picture_as_it_is():
    frames = noise()
    kept = frames.copy()
    compress(frames, np.array([-5, 3.9], np.float32))
    np.testing.assert_array_equal(frames, kept)
