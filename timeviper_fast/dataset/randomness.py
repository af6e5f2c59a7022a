"""Random numbers as functions of names and numbers: the same on every machine and version."""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["hash63", "permuted"]

_ROUNDS = 4


def hash63(*parts: int | str) -> int:
    """An integer in [0, 2^63) that is a function of the parts; use it as a seed."""
    data = "\0".join(f"{type(part).__name__}{part}" for part in parts)
    return int.from_bytes(blake2b(data.encode(), digest_size=8).digest(), "big") >> 1


def permuted(position: int, length: int, *seed: int | str) -> int:
    """The image of `position` under a seeded permutation of 0 .. length - 1.

    A Feistel network permutes the next larger power of 4; a result outside the range is permuted
    again until it lies inside. This needs no list of all rows.
    """
    half = max((length - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    number = position
    while True:
        left, right = number >> half, number & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (hash63(*seed, i, right) & mask)
        number = left << half | right
        if number < length:
            return number
