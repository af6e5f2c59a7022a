"""The boxes of mp4 and mov files: a size, a kind of four letters, and bytes or further boxes."""

from __future__ import annotations

from collections.abc import Iterator
from io import FileIO
from typing import BinaryIO, NamedTuple

__all__ = ["Box", "boxes", "is_boxed"]

_FIRST = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip")


class Box(NamedTuple):
    """A box by its kind and where its content lies; `end` may be behind the end of a cut file."""

    kind: bytes
    start: int
    end: int


def is_boxed(head: bytes) -> bool:
    """Whether a file with these first bytes consists of boxes."""
    return head[4:8] in _FIRST


def boxes(file: BinaryIO | FileIO, start: int, end: int) -> Iterator[Box]:
    """The boxes between two places of a file, or up to the first one that has no valid size."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        size, kind, content = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if size == 1:
            size, content = int.from_bytes(head[8:], "big"), start + 16
        # size 0: the box reaches to the end of the file
        stop = start + size if size else end
        if stop < content:
            return
        yield Box(kind, content, stop)
        start = stop
