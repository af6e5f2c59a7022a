"""Bounds for videos that strangers bring: a few bytes may stand for a memory full of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from timeviper_fast.errors import VideoError
from timeviper_fast.video.boxes import Box, boxes, is_boxed

__all__ = ["bounded", "expect_few_pixels", "expect_few_samples", "most_pixels"]

# Of a track of an mp4 file: 92 hours at 30 frames per second. FFmpeg takes 73 bytes for each.
_MOST_SAMPLES = 10_000_000
# FFmpeg nests boxes as deep, and reads the tables below in any of these
_DEEPEST = 10
_OUTER = {
    b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf", b"edts", b"dinf",
    b"udta", b"meta", b"tref", b"wave", b"sinf", b"schi",
}  # fmt: skip
_COUNTED = (b"stsz", b"stz2", b"trun")
_SOUND = b"soun"
# what FFmpeg takes for the kind of a track; other handlers are those of metadata
_KINDS = frozenset((_SOUND, b"vide", b"subp", b"clcp"))

_most: ContextVar[int | None] = ContextVar("most_pixels", default=None)


@contextmanager
def bounded(pixels: int) -> Iterator[None]:
    """Within the block, refuse larger pictures before they are decoded, and bombs of mp4 tables.

    It holds for the calling thread, and for the threads that read ahead for it.

    Args:
        pixels: the most that a picture may have.
    """
    token = _most.set(pixels)
    try:
        yield
    finally:
        _most.reset(token)


def most_pixels() -> int | None:
    """The most that a picture may have; None without a bound."""
    return _most.get()


def expect_few_pixels(name: Path | str, width: int, height: int) -> None:
    """Raise a VideoError for a picture of more pixels than the bound."""
    most = _most.get()
    if most is not None and width * height > most:
        what = f"its pictures have {width} x {height} pixels, more than {most:,}"
        raise VideoError(f"{name}: {what}")


def expect_few_samples(path: Path) -> None:
    """Raise a VideoError for an mp4 file that lists too many samples, if there is a bound.

    A table of equal samples takes 20 bytes in the file, whatever their number, and FFmpeg makes an
    entry for each when it opens the file. Sound without compression lists every instant: FFmpeg
    makes no entries of those.
    """
    if _most.get() is None:
        return
    with path.open("rb") as file:
        if is_boxed(file.read(8)) and _samples(file, path.stat().st_size) > _MOST_SAMPLES:
            raise VideoError(f"{path}: it lists more than {_MOST_SAMPLES:,} samples")


def _samples(file: BinaryIO, end: int) -> int:
    """How many samples FFmpeg makes an entry for."""
    tracks, strays = _tracks(file, Box(b"", 0, end))
    counted = [*strays]
    for track in tracks:
        counted += [
            box
            for box in track
            # FFmpeg counts a table outside of a track to the last track
            if strays or box.kind != b"stsz" or not _is_uncompressed_sound(file, track)
        ]
    return sum(_number(file, box) for box in counted if box.kind in _COUNTED)


def _tracks(file: BinaryIO, outer: Box, depth: int = 0) -> tuple[list[list[Box]], list[Box]]:
    """The tables of each track in a box, and those outside of tracks."""
    tracks, strays = [], []
    for box in boxes(file, outer.start, outer.end):
        if box.kind in _OUTER and depth < _DEEPEST:
            # meta has a version in front of its boxes
            inside = box._replace(start=box.start + 4 * (box.kind == b"meta"))
            inner, loose = _tracks(file, inside, depth + 1)
            if box.kind in (b"trak", b"traf"):
                tracks.append([*chain(*inner), *loose])
            else:
                tracks += inner
                strays += loose
        elif box.kind in _COUNTED or box.kind == b"stts" or _handler(file, box) in _KINDS:
            strays.append(box)
    return tracks, strays


def _is_uncompressed_sound(file: BinaryIO, track: list[Box]) -> bool:
    """Whether a track holds sound alone, each sample of which lasts a tick."""
    kinds = {_handler(file, box) for box in track} & _KINDS
    runs = set()
    for box in track:
        if box.kind == b"stts":
            file.seek(box.start + 4)
            fields = file.read(12)
            runs.add((fields[:4], fields[8:]))
    one = (1).to_bytes(4, "big")
    return kinds == {_SOUND} and runs == {(one, one)}


def _handler(file: BinaryIO, box: Box) -> bytes:
    """The kind of a track that a box states; nothing for other boxes."""
    if box.kind != b"hdlr":
        return b""
    file.seek(box.start + 8)
    return file.read(4)


def _number(file: BinaryIO, box: Box) -> int:
    """The number of samples of a table."""
    file.seek(box.start + (4 if box.kind == b"trun" else 8))
    return int.from_bytes(file.read(4), "big")
