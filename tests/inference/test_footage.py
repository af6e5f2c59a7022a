"""The seconds of vision tokens."""

from __future__ import annotations

import torch

from timeviper_fast.inference.footage import Footage, bytes_of


def test_a_token_has_the_second_of_its_frame_or_its_clips_middle():
    seconds = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    alone = Footage("v", seconds, 3.0, tokens_per_frame=2)
    assert alone.token_seconds(6).tolist() == [0, 0, 1, 1, 2, 2]
    # the last clip is filled with copies of the last frame
    pairs = Footage("v", seconds, 3.0, tokens_per_frame=2, clip=2)
    assert pairs.token_seconds(8).tolist() == [0, 0, 0, 0, 2, 2, 2, 2]


def test_a_directory_has_the_bytes_of_its_files(tmp_path):
    """So an index notices that images were added to a directory that it has read."""
    for name, size in (("1.png", 5), ("2.png", 7)):
        (tmp_path / name).write_bytes(bytes(size))
    assert bytes_of(str(tmp_path / "1.png")) == 5
    assert bytes_of(str(tmp_path)) == 12
    assert bytes_of("a pipe") is None
