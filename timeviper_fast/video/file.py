"""Video files through PyAV: index the frames of a file, then decode exactly the wanted ones.

Opening lists the packets, undecoded: from the file's own table of them where it has one, else by
reading the file. Their presentation times number the frames, on constant and variable rates alike;
flawed ones are mended. Reading then decodes only stretches of packets, each from a key frame to its
last wanted frame. Files without usable time stamps (raw streams, AVI with B-frames) are decoded
from the start and counted instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from timeviper_fast.errors import VideoError
from timeviper_fast.video.container import NO_INDEX, import_av, lacks_index, opened, unseen
from timeviper_fast.video.decode import (
    Feed,
    counted_pictures,
    decoded,
    display_order,
    sound_pictures,
)
from timeviper_fast.video.ending import declared, missing_frames, unread
from timeviper_fast.video.index import Index, Stretch
from timeviper_fast.video.orientation import Orientation, orientation_of
from timeviper_fast.video.packets import Packets, Progress, read_packets, stream_packets
from timeviper_fast.video.sample_table import listed_packets
from timeviper_fast.video.timeline import Clock, Timeline, timeline

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["FileReader", "converter", "display_of"]


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
        notes: sentences that say which of the file's time stamps are mended or doubtful, and
            what is left out: further films, and what stands at the file's end.

    Raises:
        VideoError: the file is no video, is empty, has no video stream or no decodable frame, or
            its display matrix turns by no multiple of 90 degrees.
    """

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        scan = _scan(path, progress)
        packets, clock, times = scan.packets, scan.clock, scan.times
        self._stamps, self._is_counted = (packets.pts, packets.dts), times.is_counted
        keys = np.arange(len(packets.keys)) == 0 if times.is_counted else packets.keys
        self._index = index = Index(times.order, keys, packets.shown, packets.damaged)
        self.skipped, self.missing, self.notes = index.skipped, scan.missing, times.notes
        if not len(index.packet_of):
            faults = [NO_INDEX] if lacks_index(path) else scan.faults
            raise VideoError(f"{path}: it holds no whole video frame{_because(faults)}")
        self.seconds = torch.from_numpy(times.seconds[index.skipped :].copy())
        self.duration = float(self.seconds[-1] - self.seconds[0]) + times.last
        # Some variable-rate files declare a wrong rate. Trust it only if it is near the count.
        declared, counted = float(clock.rate), len(self.seconds) / self.duration
        self.fps = declared if abs(declared / counted - 1) < 0.01 else counted
        self.size, self._orientation = _first_picture(path)

    def read(self, positions: list[int], faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode the frames at `positions` (ascending, each once): pairs (position, (H, W, 3) rgb).

        Damaged frames, and those between a damaged frame and the next key frame, are left out;
        their faults are added to `faults`. Each picture has the size that the stream has there.
        """
        index, sound = self._index, positions
        if index.unsound is not None:
            sound = [position for position in positions if not index.unsound[position]]
            if len(sound) < len(positions):
                faults.append("the file lacks data of it, or of a frame that it refers to")
        if not sound:
            return
        to_rgb = converter(self._orientation)
        stretches = [index.whole(sound)] if self._is_counted else index.stretches(sound)
        with Feed(self.path, *self._stamps, faults) as feed:
            for stretch in stretches:
                for position, picture in self._pictures(feed, stretch, faults):
                    yield position, to_rgb(picture)

    def _pictures(
        self, feed: Feed, stretch: Stretch, faults: list[str]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """The wanted pictures of a stretch that are sound."""
        wanted, known, starts = set(stretch.wanted), len(faults), False
        for position, picture in self._decoded(feed, stretch, faults):
            starts = starts or position == self._index.position_of[stretch.start]
            if not starts:
                break
            if position in wanted:
                yield position, picture
        if not starts and stretch.start > 0:
            # The key frame itself is not sound: decoding cannot start at the declared key frames
            # (periodic intra refresh). Start at the file's first one instead.
            del faults[known:]
            whole = self._index.whole(stretch.wanted)
            for position, picture in self._decoded(feed, whole, faults):
                if position in wanted:
                    yield position, picture

    def _decoded(
        self, feed: Feed, stretch: Stretch, faults: list[str]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """The sound pictures of a stretch; afterwards the decoder is ready for the next one."""
        feed.reach(stretch.start)
        pictures = counted_pictures if self._is_counted else sound_pictures
        try:
            yield from pictures(feed, stretch, self._index, faults)
        finally:
            feed.stream.codec_context.flush_buffers()


class _Scan(NamedTuple):
    """A file's packets and their times, without a last packet that is cut off."""

    packets: Packets
    clock: Clock
    times: Timeline
    missing: int
    faults: list[str]


def _scan(path: Path, progress: Progress | None) -> _Scan:
    """List the packets of a file undecoded, and check whether its end is missing."""
    faults: list[str] = []
    with opened(path) as (container, stream):
        clock, told = _clock(container, stream), declared(container, stream)
        packets = listed_packets(path, container, stream)
        name = container.format.name
        notes = unseen(container, stream) + unread(path, name)
    if packets is None:
        with opened(path) as (container, stream):
            packets = read_packets(path, container, stream, faults, progress)
    elif progress is not None:
        size = path.stat().st_size
        progress("scan", size, size)
    # A transport stream declares no length, so a damaged last packet is damage like any other.
    is_broken = bool(faults) or (bool(packets.damaged[-1:].any()) and name != "mpegts")
    with Feed(path, packets.pts, packets.dts, []) as feed:
        order = partial(display_order, feed)
        times = timeline(packets, clock, order)
        missing = missing_frames(path, told, len(packets.pts), times.end, is_broken)
        if missing and len(packets.pts):
            packets = packets.head(len(packets.pts) - 1)
            times = timeline(packets, clock, order)
    return _Scan(packets, clock, times._replace(notes=times.notes + notes), missing, faults)


def _clock(container: InputContainer, stream: VideoStream) -> Clock:
    """What the file says about its time stamps."""
    name = container.format.name
    return Clock(
        tick=Fraction(stream.time_base or 1),
        rate=Fraction(stream.average_rate or stream.guessed_rate or 1),
        reorders=bool(stream.codec_context.has_b_frames),
        states_display=name != "avi",
        states_decoding="matroska" not in name,
    )


def converter(orientation: Orientation) -> Callable[[VideoFrame], np.ndarray]:
    """A function from decoded pictures to (H, W, 3) rgb, as displayed."""
    scaling = import_av("video.reformatter")
    reformat, rgb = scaling.VideoReformatter().reformat, scaling.Colorspace.DEFAULT

    def to_rgb(picture: VideoFrame) -> np.ndarray:
        # PyAV 15 reads the file's colour matrix only if a target matrix is given.
        size = picture.width, picture.height
        converted = reformat(picture, *size, "rgb24", dst_colorspace=rgb)
        return orientation.apply(converted.to_ndarray())

    return to_rgb


def display_of(picture: VideoFrame) -> Orientation:
    """The orientation that a decoded picture's display matrix states.

    Raises:
        ValueError: it turns by no multiple of 90 degrees.
    """
    matrix: Any = picture.side_data.get("DISPLAYMATRIX")
    numbers = np.frombuffer(matrix, np.int32) if matrix else np.zeros(9, np.int32)
    return orientation_of(numbers.tolist())


def _first_picture(path: Path) -> tuple[tuple[int, int], Orientation]:
    """(height, width) as displayed, and the orientation, from the first decodable frame.

    A frame must be decoded, because only decoded frames have the display matrix in PyAV.
    """
    faults: list[str] = []
    with opened(path) as (container, stream):
        packets = enumerate(stream_packets(container, stream, faults))
        for picture in decoded(stream, packets, faults):
            try:
                turned = display_of(picture)
            except ValueError as error:
                raise VideoError(f"{path}: {error}") from error
            height, width = picture.height, picture.width
            return (width, height) if turned.transposed else (height, width), turned
    raise VideoError(f"{path}: no frame of it can be decoded{_because(faults)}")


def _because(faults: list[str]) -> str:
    return f" ({faults[0]})" if faults else ""
