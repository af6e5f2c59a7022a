"""Packets as columns, with the flags where they belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.video.common import lose, pictures
from timeviper_fast.video import write_video
from timeviper_fast.video.container import opened
from timeviper_fast.video.packets import Packets, read_packets


def read(path: Path) -> Packets:
    with opened(path) as (container, stream):
        return read_packets(path, container, stream, [], None)


def test_columns_hold_what_the_file_states(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_video(path, pictures(12), 25, options={"g": "6", "bf": "0"})
    packets = read(path)
    assert np.diff(packets.pts).tolist() == [512] * 11
    assert packets.pts.tolist() == packets.dts.tolist()
    assert np.flatnonzero(packets.keys).tolist() == [0, 6]
    assert packets.shown.all()
    assert not packets.damaged.any()
    assert packets.head(2).pts.tolist() == [0, 512]
    assert packets.tail(2).keys.tolist() == [False, False]


def test_the_damage_flag_is_the_damaged_packets(tmp_path: Path) -> None:
    """FFmpeg shows it one packet early in transport streams."""
    whole, lossy = tmp_path / "film.ts", tmp_path / "lossy.ts"
    write_video(whole, pictures(30), 25, options={"g": "10", "bf": "2"})
    for packet in (9, 10, 11, 20):
        # the beginning of this packet is lost, and the rest goes to the one before
        lose(whole, lossy, packet)
        found = read(lossy)
        assert len(found.pts) == 29
        assert np.flatnonzero(found.damaged).tolist() == [packet - 1]
