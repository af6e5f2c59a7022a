"""Random numbers are functions of seed, stream and place, and look random."""

from __future__ import annotations

import numpy as np

from timeviper_fast.synthetic.dice import bits, uniform

STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = (1 << 64) - 1


def mix(z):
    """SplitMix64's finaliser in Python's integers."""
    z = ((z ^ z >> 30) * FIRST) & MASK
    z = ((z ^ z >> 27) * SECOND) & MASK
    return z ^ z >> 31


def test_the_finaliser_is_that_of_splitmix64():
    """Its first output for state 0 is published."""
    assert mix(STEP) == 0xE220A8397B1DCDAF


def test_numbers_are_those_of_python_integers():
    seed, stream, places = -3, 2, [0, 7, 1 << 40]
    key = mix(mix((seed + STEP) & MASK) ^ (stream * STEP & MASK))
    rows = [mix(key ^ (place * FIRST & MASK)) for place in places]
    expected = [[mix((row + (i + 1) * STEP) & MASK) for i in range(4)] for row in rows]
    assert bits(seed, stream, np.array(places), 4).tolist() == expected


def test_fewer_numbers_are_the_first_ones():
    places = np.arange(5)
    np.testing.assert_array_equal(bits(1, 0, places, 9)[:, :3], bits(1, 0, places, 3))


def test_numbers_are_uniform_and_independent():
    draws = uniform(11, 0, np.arange(20_000), 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean(0) - 0.5).max() < 0.01  # 5 standard errors
    neighbours = np.corrcoef(draws[:-1].T, draws[1:].T)
    assert abs(neighbours - np.eye(16)).max() < 0.04


def test_seeds_and_streams_share_no_numbers():
    places = np.arange(100)
    seen = [bits(seed, stream, places, 4).ravel() for seed in (0, 1) for stream in (0, 1)]
    assert len(np.unique(np.concatenate(seen))) == 4 * 400
