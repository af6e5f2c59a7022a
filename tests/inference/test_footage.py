"""The seconds of vision tokens."""

from __future__ import annotations

import torch

from timeviper_fast.inference.footage import Footage


def test_a_token_has_the_second_of_its_frame_or_its_clips_middle():
    seconds = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    alone = Footage("v", seconds, 3.0, tokens_per_frame=2)
    assert alone.token_seconds(6).tolist() == [0, 0, 1, 1, 2, 2]
    # the last clip is filled with copies of the last frame
    pairs = Footage("v", seconds, 3.0, tokens_per_frame=2, clip=2)
    assert pairs.token_seconds(8).tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
