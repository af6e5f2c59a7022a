"""Which packets must be decoded for a frame, and which damage reaches it."""

from __future__ import annotations

import numpy as np

from timeviper_fast.video.index import Index

# two groups; packet 4 is a key frame, and packet 5 is displayed before it, after packet 3
ORDER = np.array([0, 2, 1, 3, 5, 4, 6, 7])
KEYS = np.isin(np.arange(8), [0, 4])
ALL, NONE = np.ones(8, np.bool_), np.zeros(8, np.bool_)


def damaged(packet: int) -> list[int]:
    """The positions that damage of this packet reaches."""
    unsound = Index(ORDER, KEYS, ALL, np.arange(8) == packet).unsound
    assert unsound is not None
    return np.flatnonzero(unsound).tolist()


def test_a_frame_starts_at_the_key_frame_displayed_before_it() -> None:
    index = Index(ORDER, KEYS, ALL, NONE)
    assert index.packet_of.tolist() == ORDER.tolist()
    assert index.starts(np.arange(8)).tolist() == [0, 0, 0, 0, 0, 4, 4, 4]
    (stretch,) = index.stretches([1, 4])
    assert stretch == (0, 6, [1, 4])
    assert index.unsound is None


def test_damage_reaches_all_that_is_decoded_after_it_up_to_the_next_key_frame() -> None:
    # the leading picture at position 4 refers to both groups
    assert damaged(0) == [0, 1, 2, 3, 4]
    # packet 1 is a reference of packet 2, which is displayed before it
    assert damaged(1) == [1, 2, 3, 4]
    assert damaged(2) == [1, 3, 4]
    assert damaged(4) == [4, 5, 6, 7]
    assert damaged(7) == [7]


def test_frames_before_the_first_key_frame_are_none() -> None:
    index = Index(ORDER, np.arange(8) == 4, ALL, NONE)
    assert index.skipped == 5
    assert index.packet_of.tolist() == [4, 6, 7]
    assert index.position_of.tolist()[4:] == [0, -1, 1, 2]


def test_a_hidden_key_frame_still_starts_a_group() -> None:
    index = Index(ORDER, KEYS, np.arange(8) != 4, NONE)
    assert index.packet_of.tolist() == [0, 2, 1, 3, 5, 6, 7]
    assert index.starts(np.arange(7)).tolist() == [0, 0, 0, 0, 0, 4, 4]
