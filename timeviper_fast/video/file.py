"""Video files through PyAV: index the frames of a file, then decode exactly the wanted ones.

Opening reads the packets once, undecoded: their presentation times number the frames, on constant
and variable rates alike. Reading then decodes only stretches of packets, each from a key frame to
its last wanted frame, and identifies frames by their time stamps. A seek that lands early only
costs time; one that lands late is detected. Files without usable time stamps (raw streams, AVI with
B-frames) are decoded from the start and counted instead.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from timeviper_fast.errors import VideoError
from timeviper_fast.video.container import import_av, opened
from timeviper_fast.video.orientation import Orientation, orientation_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["FileReader", "Progress"]

Progress = Callable[[str, int, int], None]
"""Called during long work with (what, done, total)."""

# stretches this close are decoded as one: draining and refilling the decoder costs more
_JOIN_PACKETS = 8
# to skip at most this many packets, read them undecoded: it costs less than a seek
_SEEK_PACKETS = 256
# a scan reports its progress once in so many packets
_REPORT_PACKETS = 1024


class FileReader:
    """The frames of one video file, by position in presentation order.

    Frames shown before the first key frame, as in a recording that was cut, cannot be decoded by
    any player: they are not counted as frames of the video, but in `skipped`.

    Colours are swscale's conversion from the colour space that the file states; HDR is not
    tone-mapped. No file stays open between calls.

    Attributes:
        seconds: (T,) float64, presentation time of every frame as the file states it
            (time stamp x time base: a file that starts late starts late here too).
        fps: average frames per second.
        duration: seconds from the first frame's appearance to the last one's end.
        size: (height, width) in pixels, display matrix applied.
        missing: declared frames that are not in the file because it ends early, including the one
            that is cut off; estimated from the duration if no frame count is declared.
        skipped: frames shown before the first key frame.

    Raises:
        VideoError: the file is no video, is empty, has no video stream or no decodable frame, or
            its display matrix turns by no multiple of 90 degrees.
    """

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        scan = _scan(path, progress)
        self._is_timed, self.missing = scan.is_timed, scan.missing
        self._index = index = _Index(scan.entries)
        self.skipped = sum(entry.is_shown for entry in scan.entries) - len(index.stamps)
        if not index.stamps:
            raise VideoError(f"{path}: it holds no whole video frame{_because(scan.faults)}")
        ticks = torch.tensor(index.stamps, dtype=torch.float64)
        self.seconds = ticks * scan.tick.numerator / scan.tick.denominator
        last = scan.entries[index.packet_of[-1]].duration * scan.tick or 1 / scan.rate
        self.duration = float((index.stamps[-1] - index.stamps[0]) * scan.tick + last)
        # Some variable-rate files declare a wrong rate. Trust it only if it is near the count.
        declared, counted = float(scan.rate), len(ticks) / self.duration
        self.fps = declared if abs(declared / counted - 1) < 0.01 else counted
        self._coded_size, self._orientation = _first_picture(path)
        height, width = self._coded_size
        self.size = (width, height) if self._orientation.transposed else (height, width)

    def read(
        self, positions: list[int], faults: list[str], *, may_skip: bool = True
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Decode the frames at `positions` (ascending, each once): pairs (position, (H, W, 3) rgb).

        Damaged frames, and those between a damaged frame and the next key frame, are left out;
        their faults are added to `faults`.
        """
        index = self._index
        stretches = index.stretches(positions) if may_skip else index.whole(positions)
        scaling = import_av("video.reformatter")
        reformat, rgb = scaling.VideoReformatter().reformat, scaling.Colorspace.DEFAULT
        height, width = self._coded_size
        done = 0
        with opened(self.path) as (container, stream):
            feed = _Feed(container, stream, index, faults)
            for stretch in stretches:
                if not feed.reach(stretch.start, may_skip):
                    break
                wanted = set(stretch.wanted)
                for position, picture in self._sound_pictures(stretch, feed, faults):
                    if position not in wanted:
                        continue
                    if may_skip and position != positions[done]:
                        break
                    # A stream may change its size midway: scale every frame to the first one's.
                    # PyAV 15 reads the file's colour matrix only if a target matrix is given.
                    converted = reformat(picture, width, height, "rgb24", dst_colorspace=rgb)
                    yield position, self._orientation.apply(converted.to_ndarray())
                    done = positions.index(position, done) + 1
                if may_skip and done < len(positions) and positions[done] in wanted:
                    break
                stream.codec_context.flush_buffers()
        if may_skip and done < len(positions):
            # A seek failed, frames are damaged, or decoding cannot start at the declared key frames
            # (periodic intra refresh). Decode the file from its start instead.
            faults.clear()
            yield from self.read(positions[done:], faults, may_skip=False)

    def _sound_pictures(
        self, stretch: _Stretch, feed: _Feed, faults: list[str]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """The stretch's pictures and positions, without those that damage may affect."""
        index = self._index
        expected, broken = stretch.first, False
        stop = stretch.stop if self._is_timed else len(index.entries)
        for picture in _decoded(feed.stream, feed.until(stop), faults):
            position = index.position_of.get(picture.pts) if self._is_timed else expected
            if position is None or position < expected:
                # shown before the key frame: decoded without its reference frames
                continue
            entry = index.entries[index.packet_of[position]]
            if entry.is_key:
                broken = False
            elif any(index.packet_of[i] < stop for i in range(expected, position)):
                broken = True
                faults.append("frames are missing between others")
            if picture.is_corrupt or entry.is_damaged:
                broken = True
                faults.append("frames are damaged")
            # without time stamps frames are counted: one fault makes all later positions uncertain
            broken = broken or (not self._is_timed and bool(faults))
            expected = position + 1
            if not broken:
                yield position, picture
            if position >= stretch.wanted[-1]:
                return


class _Entry(NamedTuple):
    """One packet in the index; times in units of the scan's `tick`."""

    stamp: int
    dts: int | None
    duration: int
    is_key: bool
    is_shown: bool
    is_damaged: bool


class _Stretch(NamedTuple):
    """Packets start .. stop - 1, which must be decoded to get the frames at positions `wanted`.

    `first` is the position of the key frame that it starts with.
    """

    start: int
    stop: int
    first: int
    wanted: list[int]


class _Scan(NamedTuple):
    """Properties of a file, read from its undecoded packets; `tick` is in seconds."""

    entries: list[_Entry]
    tick: Fraction
    rate: Fraction
    is_timed: bool
    missing: int
    faults: list[str]


class _Index:
    """Which packet holds which frame: positions in display order, packet numbers in file order."""

    def __init__(self, entries: list[_Entry]) -> None:
        self.entries = entries
        self.number_of: dict[int | None, int] = {
            entry.stamp: number for number, entry in enumerate(entries)
        }
        self.key_stamps: list[int] = []
        self.key_numbers: list[int] = []
        for number, entry in enumerate(entries):
            if entry.is_key and (not self.key_stamps or entry.stamp > self.key_stamps[-1]):
                self.key_stamps.append(entry.stamp)
                self.key_numbers.append(number)
        shown = [
            number
            for number, entry in enumerate(entries)
            if self.key_stamps and entry.is_shown and entry.stamp >= self.key_stamps[0]
        ]
        self.packet_of = sorted(shown, key=lambda number: entries[number].stamp)
        self.stamps = [entries[number].stamp for number in self.packet_of]
        self.position_of: dict[int | None, int] = {
            stamp: position for position, stamp in enumerate(self.stamps)
        }

    def whole(self, positions: list[int]) -> list[_Stretch]:
        """All packets up to the last of `positions`, as one stretch."""
        last = max(self.packet_of[position] for position in positions)
        return [_Stretch(self.key_numbers[0], last + 1, 0, positions.copy())]

    def stretches(self, positions: list[int]) -> list[_Stretch]:
        """The packets to decode for `positions` (ascending); those close together are joined."""
        found: list[_Stretch] = []
        for position in positions:
            # Take the last key frame in display order, not in file order: a frame that is stored
            # behind a key frame but shown before it refers to the previous key frame.
            key = bisect_right(self.key_stamps, self.stamps[position]) - 1
            start, stop = self.key_numbers[key], self.packet_of[position] + 1
            first = bisect_left(self.stamps, self.key_stamps[key])
            if found and start <= found[-1].stop + _JOIN_PACKETS:
                found[-1].wanted.append(position)
                found[-1] = found[-1]._replace(stop=max(found[-1].stop, stop))
            else:
                found.append(_Stretch(start, stop, first, [position]))
        return found


class _Feed:
    """The packets of an open file in order, with seeking."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, index: _Index, faults: list[str]
    ) -> None:
        self.container, self.stream, self.index, self.faults = container, stream, index, faults
        self.packets = _packets(container, stream, faults)
        self.next = 0

    def reach(self, number: int, may_seek: bool) -> bool:
        """Make packet `number` the next one; False if a seek went past it or failed."""
        if may_seek and number - self.next > _SEEK_PACKETS and not self._seek(number):
            return False
        for _ in self.until(number):
            pass
        return self.next <= number

    def until(self, stop: int) -> Iterator[Packet]:
        """The packets before number `stop`, which is then the next one."""
        for packet in islice(self.packets, max(stop - self.next, 0)):
            self.next += 1
            yield packet

    def _seek(self, number: int) -> bool:
        entry = self.index.entries[number]
        stamp = entry.stamp if entry.dts is None else min(entry.stamp, entry.dts)
        try:
            self.container.seek(stamp, stream=self.stream)
        except import_av("error").FFmpegError:
            return False
        self.packets = _packets(self.container, self.stream, self.faults)
        for packet in self.packets:
            landed = self.index.number_of.get(packet.pts)
            if landed is not None:
                self.packets, self.next = chain([packet], self.packets), landed
                return True
        return False


def _scan(path: Path, progress: Progress | None) -> _Scan:
    """Read the packets of a file undecoded, and check whether its end is missing."""
    faults: list[str] = []
    with opened(path) as (container, stream):
        # in the order of _Entry's fields; the time stamp may be None
        packets: list[tuple[Any, ...]] = [
            (p.pts, p.dts, p.duration or 0, p.is_keyframe, _is_shown(p), p.is_corrupt)
            for p in _reported(_packets(container, stream, faults), container.size, progress)
        ]
        rate = Fraction(stream.average_rate or stream.guessed_rate or 1)
        tick = Fraction(stream.time_base or 1)
        declared_end, unseen = _declared_end(container, stream), stream.frames - len(packets)
        # AVI stores no presentation times. PyAV reports the file order, wrong with B-frames.
        reordered = container.format.name == "avi" and stream.codec_context.has_b_frames
    stamps = {packet[0] for packet in packets}
    is_timed = not reordered and None not in stamps and len(stamps) == len(packets)
    if not is_timed:
        tick = 1 / rate
        packets = [(i, None, 1, i == 0, *rest) for i, (_, _, _, _, *rest) in enumerate(packets)]
    entries = [_Entry(*packet) for packet in packets]
    end = max((entry.stamp + entry.duration for entry in entries), default=0) * tick
    late = (declared_end - float(end)) * float(rate) if declared_end else 0.0
    # If the sample table lists more frames than were read, allow 1.5 frames. Otherwise allow 1 s,
    # at least 2 frames: a declared duration may be rounded, or another stream's.
    ends_early = late > 1.5 if unseen > 0 else late > max(2.0, float(rate))
    if entries and (faults or entries[-1].is_damaged or ends_early):
        missing = max(unseen, round(late), 0) + 1
        return _Scan(entries[:-1], tick, rate, is_timed, missing, faults)
    return _Scan(entries, tick, rate, is_timed, 0, faults)


def _declared_end(container: InputContainer, stream: VideoStream) -> float | None:
    """The end of the video in seconds of its own clock, if the container declares it."""
    tick = stream.time_base
    if stream.duration and tick:
        return float((stream.duration + (stream.start_time or 0)) * tick)
    if "matroska" in container.format.name:
        if "DURATION" in stream.metadata:
            hours, minutes, seconds = stream.metadata["DURATION"].split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        if container.duration and len(container.streams) == 1:
            return container.duration / 1e6
    return None


def _packets(container: InputContainer, stream: VideoStream, faults: list[str]) -> Iterator[Packet]:
    """The stream's packets up to the end of the file, or to the first read error."""
    # import before the loop: a generator that is garbage-collected must not import anything
    failure = import_av().FFmpegError
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except failure as error:
        faults.append(str(error.strerror))


def _reported(packets: Iterator[Packet], size: int, progress: Progress | None) -> Iterator[Packet]:
    """The packets; while they are read, `progress("scan", bytes read, bytes of the file)`."""
    for number, packet in enumerate(packets):
        if progress is not None and number % _REPORT_PACKETS == 0:
            progress("scan", min(max(packet.pos or 0, 0), size), size)
        yield packet
    if progress is not None:
        progress("scan", size, size)


def _is_shown(packet: Packet) -> bool:
    """Whether the picture is displayed: not cut by an edit list, not a hidden VP8 reference."""
    if packet.is_discard:
        return False
    return packet.stream.codec_context.name not in ("vp8", "libvpx") or bool(bytes(packet)[0] & 16)


def _decoded(
    stream: VideoStream, packets: Iterable[Packet], faults: list[str]
) -> Iterator[VideoFrame]:
    """All pictures of the packets, including those that the decoder buffers until the end."""
    failure = import_av().FFmpegError
    for packet in chain(packets, [None]):
        try:
            yield from stream.codec_context.decode(packet)
        except failure as error:
            faults.append(str(error.strerror))


def _first_picture(path: Path) -> tuple[tuple[int, int], Orientation]:
    """(height, width) as coded, and the orientation, from the first decodable frame.

    A frame must be decoded, because only decoded frames have the display matrix in PyAV.
    """
    faults: list[str] = []
    with opened(path) as (container, stream):
        for picture in _decoded(stream, _packets(container, stream, faults), faults):
            matrix: Any = picture.side_data.get("DISPLAYMATRIX")
            numbers = np.frombuffer(matrix, np.int32) if matrix else np.zeros(9, np.int32)
            try:
                turned = orientation_of(numbers.tolist())
            except ValueError as error:
                raise VideoError(f"{path}: {error}") from error
            return (picture.height, picture.width), turned
    raise VideoError(f"{path}: no frame of it can be decoded{_because(faults)}")


def _because(faults: list[str]) -> str:
    return f" ({faults[0]})" if faults else ""
