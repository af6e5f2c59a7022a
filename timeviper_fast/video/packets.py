"""The packets of a video stream as columns of numbers, read without decoding a picture."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from timeviper_fast.video.container import import_av
from timeviper_fast.video.continuity import breaks, marked

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

__all__ = [
    "HIDES_PICTURES",
    "UNKNOWN",
    "Packets",
    "Progress",
    "columns",
    "read_packets",
    "stream_packets",
]

Progress = Callable[[str, int, int], None]
"""Called during long work with (what, done, total)."""

UNKNOWN = -(2**63)
"""A time stamp that the file does not state."""

HIDES_PICTURES = ("vp8", "libvpx")
"""Decoders of VP8, which marks pictures that are not displayed in their first byte alone."""

_KEY, _SHOWN, _DAMAGED = 1, 2, 4
# a scan reports its progress once in so many packets
_REPORT_PACKETS = 1024


class Packets(NamedTuple):
    """One row per packet, in the order of the file.

    Attributes:
        pts, dts: (n,) int64, presentation and decode stamp in the stream's ticks, or UNKNOWN.
        durations: (n,) int64 ticks, 0 where the file states none.
        keys: (n,) bool, decoding can start there.
        shown: (n,) bool, the picture is displayed.
        damaged: (n,) bool, the container lost or damaged some of the packet's bytes.
        joins: (n,) bool, a further stream begins there that was joined to the one before.
        may_leap: (n,) bool, the clock may start anew ahead there; elsewhere a leap is a pause.
    """

    pts: np.ndarray
    dts: np.ndarray
    durations: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    damaged: np.ndarray
    joins: np.ndarray
    may_leap: np.ndarray

    def head(self, count: int) -> Packets:
        """The first `count` packets."""
        return Packets(*(column[:count] for column in self))

    def tail(self, count: int) -> Packets:
        """The last `count` packets."""
        return Packets(*(column[len(column) - count :] for column in self))


def read_packets(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    faults: list[str],
    progress: Progress | None,
) -> Packets:
    """All packets of the stream; a read error that ends the file early is added to `faults`."""
    packets = _reported(stream_packets(container, stream, faults), container.size, progress)
    if container.format.name != "mpegts":
        return columns(packets)
    places = array("q")
    found = columns(_placed(packets, places))
    ascending = np.maximum.accumulate(np.frombuffer(places, np.int64))
    moved = _moved_by_the_parser(found.damaged)
    damaged, joins, leaps = marked(moved, ascending, found.keys, breaks(path, stream.id))
    return found._replace(damaged=damaged, joins=joins, may_leap=leaps)


def columns(packets: Iterable[Packet]) -> Packets:
    """The packets as columns."""
    pts, dts, durations, flags = array("q"), array("q"), array("q"), bytearray()
    for packet in packets:
        pts.append(UNKNOWN if packet.pts is None else packet.pts)
        dts.append(UNKNOWN if packet.dts is None else packet.dts)
        durations.append(packet.duration or 0)
        flags.append(
            _KEY * packet.is_keyframe + _SHOWN * _is_shown(packet) + _DAMAGED * packet.is_corrupt
        )
    bits = np.frombuffer(flags, np.uint8)
    keys, shown, damaged = ((bits & bit).astype(bool) for bit in (_KEY, _SHOWN, _DAMAGED))
    stamps = [np.frombuffer(column, np.int64) for column in (pts, dts, durations)]
    never = np.zeros((2, len(bits)), np.bool_)
    return Packets(*stamps, keys, shown, damaged, *never)  # type: ignore[call-arg]


def stream_packets(
    container: InputContainer, stream: VideoStream, faults: list[str]
) -> Iterator[Packet]:
    """The stream's packets up to the end of the file, or to the first read error."""
    # import before the loop: a generator that is garbage-collected must not import anything
    failure = import_av().FFmpegError
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except failure as error:
        faults.append(str(error.strerror))


def _moved_by_the_parser(damaged: np.ndarray) -> np.ndarray:
    """The damage flags of a transport stream, moved to the packets that they belong to.

    FFmpeg's parser ends a picture when the next one begins, and gives the finished picture the
    flags of the data that ended it. So each flag stands one packet before the damaged one.
    """
    moved = np.zeros_like(damaged)
    moved[1:] = damaged[:-1]
    moved[-1:] |= damaged[-1:]
    return moved


def _reported(packets: Iterator[Packet], size: int, progress: Progress | None) -> Iterator[Packet]:
    """The packets; while they are read, `progress("scan", bytes read, bytes of the file)`."""
    for number, packet in enumerate(packets):
        if progress is not None and number % _REPORT_PACKETS == 0:
            progress("scan", min(max(packet.pos or 0, 0), size), size)
        yield packet
    if progress is not None:
        progress("scan", size, size)


def _placed(packets: Iterator[Packet], places: array[int]) -> Iterator[Packet]:
    """The packets; where each begins in the file is added to `places`, or -1."""
    for packet in packets:
        places.append(-1 if packet.pos is None else packet.pos)
        yield packet


def _is_shown(packet: Packet) -> bool:
    """Whether the picture is displayed: not cut by an edit list, not a hidden VP8 reference."""
    if packet.is_discard:
        return False
    return packet.stream.codec_context.name not in HIDES_PICTURES or bool(bytes(packet)[0] & 16)
