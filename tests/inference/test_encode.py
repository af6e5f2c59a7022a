"""Each vision token has the second of its frame."""

from __future__ import annotations

import torch

from timeviper_fast.inference.encode import filling_note, token_seconds


def test_each_token_has_the_second_of_its_frame():
    times = torch.tensor([0.0, 0.5, 2.0])
    assert token_seconds(times, [2, 0, 1]).tolist() == [0.0, 0.0, 2.0]
    # a clip that was filled up with its last frame
    assert token_seconds(times, [1, 1, 1, 2]).tolist() == [0.0, 0.5, 2.0, 2.0, 2.0]


def test_tokens_of_a_clip_have_the_second_of_its_middle_frame():
    """A merged token holds patches of any frame of its clip, so no order is read into them."""
    times = torch.arange(6.0)
    seconds = token_seconds(times, [2] * 8, clip=4).tolist()
    # the last clip has two frames and two copies of the second one
    assert seconds == [1.0] * 8 + [4.0] * 8
    assert token_seconds(times[:5], [1] * 8, clip=4).tolist() == [1.0] * 4 + [4.0] * 4
    assert token_seconds(times[:1], [64], clip=4).tolist() == [0.0] * 64


def test_copies_that_fill_a_clip_are_told():
    assert filling_note(8, 4) == filling_note(1, 4) == filling_note(7, 1) == ()
    assert filling_note(5, 4) == (
        "The last clip of 4 frames is filled with 3 copies of its last frame.",
    )
    assert filling_note(7, 4)[0].endswith("with 1 copy of its last frame.")
