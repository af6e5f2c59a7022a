"""What a bound forgets, and what it holds in a day."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from timeviper_fast.inference.bounded import Thin, Window, parse_bound


def day(bound, frames: int) -> tuple[list[float], int]:
    """Seconds that are left after so many frames, one a second, and the most that were held."""
    left, most = torch.empty(0, dtype=torch.float64), 0
    for start in range(0, frames, 16):
        new = torch.arange(start, min(start + 16, frames), dtype=torch.float64)
        left = torch.cat([left, new])
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[bound.gone(left)] = False
        left = left[stays]
        most = max(most, len(left))
    return left.tolist(), most


def test_a_window_holds_its_length_and_at_most_an_eighth_more():
    left, most = day(Window(400.0), 5000)
    assert left[-1] == 4999
    assert left == [left[0] + i for i in range(len(left))]
    assert left[0] <= 4999 - 400
    assert most <= 400 * 9 / 8 + 17


def test_thinning_holds_as_many_and_gets_sparser_with_age():
    left, most = day(Thin(400.0), 5000)
    assert most <= 400 + 17
    assert (left[0], left[-1]) == (0, 4999)
    steps = [b - a for a, b in pairwise(left)]
    half = len(steps) // 2
    assert sum(steps[:half]) > 3 * sum(steps[half:])
    assert set(steps[-100:]) == {1}


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("window:2h", Window(7200)),
        ("thin:90m", Thin(5400)),
        ("window:1.5min", Window(90)),
        ("thin:30s", Thin(30)),
    ],
)
def test_forms(text, bound):
    assert parse_bound(text) == bound


@pytest.mark.parametrize("text", ["window", "window:2", "window:0h", "ring:2h", "", "thin:-2h"])
def test_mistakes(text):
    with pytest.raises(ValueError, match="bounded must be window:LENGTH or thin:LENGTH"):
        parse_bound(text)
