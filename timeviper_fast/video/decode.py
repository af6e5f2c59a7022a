"""Decode stretches of a video file: which pictures are sound, and which frame each of them is.

The decoder gets the number of each packet as its time stamp. It hands the number on to the picture
that it makes from the packet, so a picture is known whatever the file's own time stamps say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from timeviper_fast.video.container import import_av, opened
from timeviper_fast.video.index import Index, Stretch
from timeviper_fast.video.packets import UNKNOWN, stream_packets

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Feed", "counted_pictures", "decoded", "display_order", "sound_pictures"]

# to skip at most this many packets, read them undecoded: it costs less than a seek
_SEEK_PACKETS = 256

_DAMAGED = "frames are damaged"


class Feed:
    """The packets of a file in order, each with its number; it can skip ahead and go back.

    A seek that lands early only costs time. After one that lands late or nowhere, the file is
    opened anew and read up to the packet.
    """

    def __init__(self, path: Path, pts: np.ndarray, dts: np.ndarray, faults: list[str]) -> None:
        self._path, self._pts, self._dts, self._faults = path, pts, dts, faults
        self._files = ExitStack()
        self.next = -1

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def reach(self, number: int) -> None:
        """Make packet `number` the next one."""
        if self.next < 0 or number < self.next:
            self._open()
        if number - self.next > _SEEK_PACKETS:
            self._seek(number)
        if number < self.next:
            self._open()
        for _ in self.until(number):
            pass

    def until(self, stop: int) -> Iterator[tuple[int, Packet]]:
        """The packets before number `stop`, which is then the next one."""
        for packet in islice(self._packets, max(stop - self.next, 0)):
            self.next += 1
            yield self.next - 1, packet

    def _open(self) -> None:
        self._files.close()
        self.container, self.stream = self._files.enter_context(opened(self._path))
        self._packets, self.next = stream_packets(self.container, self.stream, self._faults), 0

    def _seek(self, number: int) -> None:
        stamps = [int(column[number]) for column in (self._pts, self._dts)]
        if UNKNOWN in stamps[:1] or np.count_nonzero(self._pts == stamps[0]) > 1:
            return
        try:
            stamp = min(stamp for stamp in stamps if stamp != UNKNOWN)
            self.container.seek(stamp, stream=self.stream)
        except import_av("error").FFmpegError:
            return
        packets = stream_packets(self.container, self.stream, self._faults)
        for packet in islice(packets, _SEEK_PACKETS):
            landed = self._landed(packet)
            if landed is not None:
                self._packets, self.next = chain([packet], packets), landed
                return
        self._open()

    def _landed(self, packet: Packet) -> int | None:
        """The packet's number, if no other packet has its time stamp."""
        numbers = np.flatnonzero(self._pts == (UNKNOWN if packet.pts is None else packet.pts))
        return int(numbers[0]) if len(numbers) == 1 else None


def decoded(
    stream: VideoStream, packets: Iterable[tuple[int, Packet]], faults: list[str]
) -> Iterator[VideoFrame]:
    """All pictures of the packets, those too that the decoder buffers until the end.

    The `pts` of a picture is the number of its packet.
    """
    failure = import_av().FFmpegError
    for number, packet in chain(packets, [(None, None)]):
        if packet is not None:
            packet.pts = number
        try:
            yield from stream.codec_context.decode(packet)
        except failure as error:
            faults.append(str(error.strerror))


def display_order(feed: Feed, start: int, stop: int) -> list[int]:
    """The packets start .. stop - 1 whose pictures decode, in the order that the decoder shows."""
    feed.reach(start)
    order = [picture.pts for picture in decoded(feed.stream, feed.until(stop), [])]
    feed.stream.codec_context.flush_buffers()
    return [number for number in order if number is not None]


def sound_pictures(
    feed: Feed, stretch: Stretch, index: Index, faults: list[str]
) -> Iterator[tuple[int, VideoFrame]]:
    """The positions and pictures of a stretch, without those that damage may have reached.

    A picture is sound if every packet from its key frame's to its own one gave an undamaged
    picture. A picture that is displayed before another one that it may refer to therefore waits
    until that one is decoded, too.
    """
    line = _Line(stretch, index)
    for picture in decoded(feed.stream, feed.until(stretch.stop), faults):
        faults += line.add(picture)
        for position, sound in line.settled():
            yield position, sound
            if position >= stretch.wanted[-1]:
                return
    faults += line.end()
    yield from line.settled()


def counted_pictures(
    feed: Feed, stretch: Stretch, index: Index, faults: list[str]
) -> Iterator[tuple[int, VideoFrame]]:
    """Pictures that are known by their count alone: the first fault makes all later ones unsure."""
    everything = feed.until(len(index.position_of))
    for position, picture in enumerate(decoded(feed.stream, everything, faults)):
        if picture.is_corrupt:
            faults.append(_DAMAGED)
        if faults or position > stretch.wanted[-1]:
            return
        yield position, picture


class _Line:
    """The pictures of a stretch that wait until it is known whether they are sound."""

    def __init__(self, stretch: Stretch, index: Index) -> None:
        self._index, self._due, self._stop = index, stretch.start, stretch.stop
        self._first = self._next = int(index.position_of[stretch.start])
        self._waiting: deque[tuple[int, int, VideoFrame]] = deque()
        self._done: set[int] = set()
        self._bad: list[int] = []

    def add(self, picture: VideoFrame) -> list[str]:
        """Take the next picture that the decoder shows; what is wrong with it and before it."""
        if picture.pts is None:
            return []
        position = int(self._index.position_of[picture.pts])
        if position < self._next:
            # shown before the key frame: decoded without its reference frames
            return []
        faults = self._lose(position)
        if picture.is_corrupt:
            self._bad.append(picture.pts)
            faults.append(_DAMAGED)
        self._next = position + 1
        self._done.add(picture.pts)
        self._waiting.append((position, picture.pts, picture))
        self._pass()
        return faults

    def end(self) -> list[str]:
        """There are no more pictures; what is wrong with the last ones."""
        faults = self._lose(len(self._index.packet_of))
        self._due = self._stop
        return faults

    def settled(self) -> Iterator[tuple[int, VideoFrame]]:
        """The sound ones among the pictures that need wait no longer."""
        while self._waiting and self._waiting[0][1] < self._due:
            position, number, picture = self._waiting.popleft()
            start = int(self._index.starts(np.array([position]))[0])
            if not any(start <= bad <= number for bad in self._bad):
                yield position, picture

    def _lose(self, position: int) -> list[str]:
        """Note that the pictures before `position` that have not come will not come."""
        lost = self._index.packet_of[self._next : position]
        missing = lost[lost < self._stop].tolist()
        self._bad += missing
        self._done.update(missing)
        return ["frames are missing between others"] if missing else []

    def _pass(self) -> None:
        """Go on to the first packet whose picture may still come."""
        index = self._index
        while self._due < self._stop and (
            self._due in self._done
            or not index.shown[self._due]
            or index.position_of[self._due] < self._first
        ):
            self._done.discard(self._due)
            self._due += 1
