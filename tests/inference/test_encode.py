"""Each vision token has the second of its frame."""

from __future__ import annotations

import torch

from timeviper_fast.inference.encode import token_seconds


def test_each_token_has_the_second_of_its_frame():
    times = torch.tensor([0.0, 0.5, 2.0])
    assert token_seconds(times, [2, 0, 1]).tolist() == [0.0, 0.0, 2.0]
    # a clip that was filled up with its last frame
    assert token_seconds(times, [1, 1, 1, 2]).tolist() == [0.0, 0.5, 2.0, 2.0, 2.0]
