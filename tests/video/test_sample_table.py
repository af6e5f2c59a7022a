"""The table of an mp4 file gives the same packets as reading them all, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.video.common import av, pictures
from timeviper_fast.video import write_video
from timeviper_fast.video.container import opened
from timeviper_fast.video.packets import Packets, read_packets
from timeviper_fast.video.sample_table import listed_packets

WRITTEN: dict[str, dict] = {
    "none.mp4": {"options": {"bf": "0", "g": "12"}},
    "reordered.mp4": {"options": {"bf": "3", "g": "12"}},
    "reordered.mov": {"options": {"bf": "3", "g": "12"}},
    "uneven.mp4": {"seconds": [i * i / 50 for i in range(40)], "options": {"bf": "2", "g": "9"}},
    "late.mp4": {"seconds": [5 + i / 25 for i in range(40)]},
    "edited.mp4": {"seconds": [(i - 7) / 25 for i in range(40)], "options": {"bf": "3"}},
}


def listed(path: Path) -> Packets | None:
    with opened(path) as (container, stream):
        return listed_packets(path, container, stream)


@pytest.mark.skipif(int(av.__version__.split(".")[0]) < 17, reason="older PyAV shows no table")
@pytest.mark.parametrize("name", WRITTEN)
def test_the_table_is_what_reading_gives(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_video(path, pictures(40), 25, **WRITTEN[name])
    with opened(path) as (container, stream):
        read = read_packets(path, container, stream, [], None)
    table = listed(path)
    assert table is not None
    for field, mine, theirs in zip(Packets._fields, table, read):
        assert np.array_equal(mine, theirs), field


def test_what_has_no_exact_table_is_read(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mkv", pictures(20), 25)
    write_video(tmp_path / "film.avi", pictures(20), 25, codec="mpeg4")
    write_video(tmp_path / "whole.mp4", pictures(20), 25)
    assert listed(tmp_path / "film.mkv") is None
    assert listed(tmp_path / "film.avi") is None
    options = {"movflags": "frag_keyframe+empty_moov"}
    with (
        av.open(str(tmp_path / "whole.mp4")) as old,
        av.open(str(tmp_path / "pieces.mp4"), "w", options=options) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    assert listed(tmp_path / "pieces.mp4") is None
