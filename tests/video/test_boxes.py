"""Boxes of mp4 files, and where a cut file would go on."""

from __future__ import annotations

import io

from timeviper_fast.video.boxes import boxes, is_boxed


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def test_boxes_are_found_by_their_sizes() -> None:
    wide = (1).to_bytes(4, "big") + b"mdat" + (16 + 5).to_bytes(8, "big") + b"12345"
    data = box(b"ftyp", b"isom") + wide + box(b"moov", box(b"mvhd", b"abc"))
    assert is_boxed(data)
    assert not is_boxed(b"RIFF....AVI ")
    found = list(boxes(io.BytesIO(data), 0, len(data)))
    assert [one.kind for one in found] == [b"ftyp", b"mdat", b"moov"]
    assert data[found[1].start : found[1].end] == b"12345"
    (inner,) = boxes(io.BytesIO(data), found[2].start, found[2].end)
    assert data[inner.start : inner.end] == b"abc"


def test_the_last_box_reaches_behind_the_end_of_a_cut_file() -> None:
    data = box(b"ftyp", b"isom") + box(b"mdat", b"0123456789")[:12]
    *_, last = boxes(io.BytesIO(data), 0, len(data))
    assert last.end == 12 + 18
    # a box of size 0 ends with the file, and a size below 8 ends the list
    to_the_end = bytes(4) + b"mdat" + b"01234"
    assert [one.end for one in boxes(io.BytesIO(to_the_end), 0, 13)] == [13]
    assert not list(boxes(io.BytesIO(b"\0\0\0\3mdat0000"), 0, 12))
