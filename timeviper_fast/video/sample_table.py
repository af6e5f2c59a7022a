"""The packets of an mp4 or mov file from its sample table, without reading the packets.

PyAV 17 and newer shows FFmpeg's table of samples, which has decode stamps. The presentation stamps
are these plus the file's composition offsets. What is found so is compared with the first packets
and with all from the last key frame on; where anything differs, the file must be scanned.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from timeviper_fast.video.boxes import Box, boxes
from timeviper_fast.video.container import import_av
from timeviper_fast.video.packets import HIDES_PICTURES, Packets, columns, stream_packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["listed_packets"]

# FFmpeg's flags of an index entry, a signed number of two bits
_KEY, _HIDDEN = 1, 2
# packets at the beginning that are compared with the table
_COMPARED = 32


def listed_packets(path: Path, container: InputContainer, stream: VideoStream) -> Packets | None:
    """All packets of the stream, or None if the file has no exact table of them."""
    entries: Any = getattr(stream, "index_entries", None)
    name, codec = container.format.name, stream.codec_context.name
    if not entries or len(entries) != stream.frames or "mp4" not in name or codec in HIDES_PICTURES:
        return None
    rows = ((e.timestamp, e.flags, e.size, e.pos + e.size) for e in entries)
    table = np.fromiter(rows, np.dtype("i8, i1, i4, i8"), len(entries))
    offsets = _composition_offsets(path, stream.id, len(table))
    if offsets is None or table["f2"].min() == 0 or table["f3"].max() > path.stat().st_size:
        return None
    decode = table["f0"].copy()
    durations = np.append(np.diff(decode), 0)
    keys, shown = ((table["f1"] & flag) == value for flag, value in ((_KEY, _KEY), (_HIDDEN, 0)))
    listed = Packets(
        decode + offsets, decode, durations, keys, shown, *np.zeros((3, len(table)), np.bool_)
    )
    return _compared(listed, container, stream)


def _compared(listed: Packets, container: InputContainer, stream: VideoStream) -> Packets | None:
    """The packets, with their common offset and last duration, if the file's packets agree."""
    first = columns(islice(stream_packets(container, stream, []), _COMPARED))
    key = int(np.flatnonzero(listed.keys)[-1]) if listed.keys.any() else 0
    if not len(first.pts):
        return None
    pts = listed.pts + (first.pts[0] - listed.pts[0])
    try:
        container.seek(int(listed.dts[key]), stream=stream)
    except import_av("error").FFmpegError:
        return None
    last = columns(stream_packets(container, stream, []))
    durations = listed.durations.copy()
    durations[-1:] = last.durations[-1:]
    listed = listed._replace(pts=pts, durations=durations)
    ends = [(first, listed.head(len(first.pts))), (last, listed.tail(len(last.pts)))]
    agrees = all(map(np.array_equal, *pair) for pair in ends)
    return listed if agrees and len(last.pts) else None


def _composition_offsets(path: Path, track: int, samples: int) -> np.ndarray | None:
    """(samples,) ticks from decoding to presentation; None where the file does not list them.

    None, too, for files in fragments, whose table is only the beginning.
    """
    with path.open("rb") as file:
        index = _inner(file, Box(b"", 0, path.stat().st_size), b"moov")
        if not index or _inner(file, index[0], b"mvex"):
            return None
        for box in _inner(file, index[0], b"trak"):
            (header,) = _inner(file, box, b"tkhd")
            if _track_number(file, header) == track:
                return _read_offsets(file, box, samples)
    return None


def _inner(file: BinaryIO, outer: Box, kind: bytes) -> list[Box]:
    return [box for box in boxes(file, outer.start, outer.end) if box.kind == kind]


def _track_number(file: BinaryIO, header: Box) -> int:
    file.seek(header.start)
    fields = file.read(24)
    # version 1 has two times of eight bytes before the number, version 0 of four
    at = 20 if fields[0] == 1 else 12
    return int.from_bytes(fields[at : at + 4], "big")


def _read_offsets(file: BinaryIO, track: Box, samples: int) -> np.ndarray | None:
    tables = [track]
    for kind in (b"mdia", b"minf", b"stbl"):
        tables = [inner for box in tables for inner in _inner(file, box, kind)]
    found = [box for table in tables for box in _inner(file, table, b"ctts")]
    if not found:
        return np.zeros(samples, np.int64)
    file.seek(found[0].start + 8)
    runs = np.frombuffer(file.read(found[0].end - found[0].start - 8), ">i4").reshape(-1, 2)
    offsets = np.repeat(runs[:, 1].astype(np.int64), runs[:, 0])
    return offsets if len(offsets) == samples else None
