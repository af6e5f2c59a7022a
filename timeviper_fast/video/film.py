"""A film from its first key frame on, decoded as it comes: pictures with their times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from timeviper_fast.errors import VideoError
from timeviper_fast.video.container import import_av
from timeviper_fast.video.file import converter, display_of
from timeviper_fast.video.packets import stream_packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Shown", "Tally", "film", "in_order"]

# seconds; a clock that goes back by more starts anew, and less is a repeated frame
_RESTART = 1.0
# packets whose pictures may still come, and damaged places that pictures may still depend on
_REMEMBERED = 64
_BEFORE_KEY = "they come before the first key frame"


class Shown(NamedTuple):
    """A picture: when it is shown, and a function that makes its (H, W, 3) rgb."""

    second: float
    rgb: Callable[[], np.ndarray]


@dataclass
class Tally:
    """What a stream counts.

    Attributes:
        lost: frames that are damaged, or not to be decoded.
        repeated: frames that are not later than the one before.
        late: files that arrived behind their place.
        restarts: places where the clock starts anew.
        untimed: frames without a time stamp.
        last: seconds for which the last frame is shown.
        faults: why frames are lost, a few of them.
        cut: why reading ended at a place that is no end.
        end: what became of the source, in place of an end.
    """

    lost: int = 0
    repeated: int = 0
    late: int = 0
    restarts: int = 0
    untimed: int = 0
    last: float = 0.0
    faults: list[str] = field(default_factory=list)
    cut: str = ""
    end: str = ""

    def lose(self, fault: str) -> None:
        """Count a lost frame. Only the first faults are kept: a stream may run for months."""
        self.lost += 1
        if fault and len(self.faults) < 3 and fault not in self.faults:
            self.faults.append(fault)

    def sentences(self) -> tuple[str, ...]:
        """What was left out or mended, for people."""
        why = f" ({self.faults[0]})" if self.faults else ""
        counts = (
            (self.lost, f"lost: damaged or not decodable{why}"),
            (self.repeated, "left out: not later than the frame before"),
            (self.late, "left out: files that arrived behind their place"),
            (self.untimed, "without a time stamp: the usual rate is assumed"),
        )
        said = [f"{_frames(count)} {what}" for count, what in counts if count]
        if self.restarts:
            places = "1 place" if self.restarts == 1 else f"{self.restarts} places"
            said.append(f"the time stamps start anew in {places}; each part follows the one before")
        if self.cut:
            said.append(self.cut)
        return tuple(said)


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


def film(container: InputContainer, stream: VideoStream, tally: Tally) -> Iterator[Shown]:
    """The sound pictures of a stream in the order of their display.

    Pictures that are shown before the first key frame, damaged ones, and those behind a damaged one
    up to the next key frame are lost.
    """
    # Threads that decode several frames at a time hold back as many, and report an error with the
    # packets of other frames, which are then lost.
    stream.thread_type = "SLICE"
    decoder = _Decoder(container, stream, tally)
    faults: list[str] = []
    for packet in chain(stream_packets(container, stream, faults), [None]):
        yield from decoder.pictures(packet)
    if faults:
        tally.cut = f"reading it failed: {faults[0]}"


def in_order(pictures: Iterator[Shown], tally: Tally) -> Iterator[Shown]:
    """The pictures whose time ascends. A clock that starts anew is moved to follow its past."""
    last: float | None = None
    step, shift = 0.0, 0.0
    for second, rgb in pictures:
        now = second + shift
        if last is not None and last - _RESTART < now <= last:
            tally.repeated += 1
            continue
        if last is not None and now <= last:
            tally.restarts += 1
            shift += last + step - now
            now = last + step
        if last is not None:
            step = now - last
        last = now
        yield Shown(now, rgb)


class _Packet(NamedTuple):
    """What is remembered of a packet until its picture comes.

    Attributes:
        stamp: its presentation time in ticks.
        number: its place in the stream.
        start: that of the key frame from which its picture can be decoded.
        duration: in ticks, 0 if it is not stated.
    """

    stamp: int
    number: int
    start: int
    duration: int


class _Decoder:
    """Decodes packets, and tells sound pictures from lost ones.

    A picture is sound if nothing from its key frame's packet to its own one is damaged.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, tally: Tally) -> None:
        self._stream, self._tally = stream, tally
        self._tick = Fraction(stream.time_base or 1)
        self._rate = Fraction(stream.average_rate or stream.guessed_rate or 1)
        codec = stream.codec_context.codec
        # no picture refers to another one
        self._is_intra = codec.intra_only or codec.name == "wrapped_avframe"
        # FFmpeg's parser flags the packet before the damaged one
        self._flags_early = container.format.name == "mpegts"
        self._next_is_bad = False
        self._number = -1
        # the places of the last two key frames, and the time stamps of the first and the last one
        self._keys: tuple[int, int] | None = None
        self._first_stamp: int | None = None
        self._key_stamp: int | None = None
        self._packets: dict[int, _Packet] = {}
        # pictures that come later may still depend on these places
        self._bad: deque[int] = deque(maxlen=_REMEMBERED)
        self._seconds: float | None = None
        self._to_rgb: Callable[[VideoFrame], np.ndarray] | None = None

    def pictures(self, packet: Packet | None) -> Iterator[Shown]:
        """The sound pictures that the decoder gives for a packet; None ends the stream."""
        if packet is not None and not self._note(packet):
            self._tally.lose(_BEFORE_KEY)
            return
        try:
            decoded = self._stream.codec_context.decode(packet)
        except import_av().FFmpegError as error:
            self._bad.append(self._number)
            self._tally.lose(str(error.strerror))
            return
        for picture in decoded:
            found = self._packet_of(picture)
            second = self._second(picture, found)
            if self._is_sound(picture, found):
                yield Shown(second, partial(self._rgb, picture))

    def _note(self, packet: Packet) -> bool:
        """Remember a packet; False if it comes before the first key frame."""
        is_key = packet.is_keyframe or self._is_intra
        if self._keys is None and not is_key:
            return False
        self._number += 1
        if self._keys is None:
            self._keys, self._first_stamp = (self._number, self._number), packet.pts
        if is_key:
            self._keys, self._key_stamp = (self._keys[1], self._number), packet.pts
        is_bad = packet.is_corrupt
        if self._flags_early:
            is_bad, self._next_is_bad = self._next_is_bad, is_bad
        if is_bad:
            self._bad.append(self._number)
        if packet.pts is not None:
            # a picture that is shown before its key frame refers to the one before, too
            leads = self._key_stamp is not None and packet.pts < self._key_stamp
            start = self._keys[0 if leads else 1]
            self._packets[packet.pts] = _Packet(
                packet.pts, self._number, start, packet.duration or 0
            )
        return True

    def _packet_of(self, picture: VideoFrame) -> _Packet | None:
        """The picture's packet; those long before are forgotten. None where there are no stamps."""
        found = self._packets.get(picture.pts) if picture.pts is not None else None
        if found is not None:
            oldest = found.number - _REMEMBERED
            kept = {s: p for s, p in self._packets.items() if p.number > oldest and p is not found}
            self._packets = kept
        return found

    def _second(self, picture: VideoFrame, packet: _Packet | None) -> float:
        """When the picture is shown; how long is noted in the tally."""
        if picture.pts is None:
            self._tally.untimed += 1
            usual = float(1 / self._rate)
            self._seconds = 0.0 if self._seconds is None else self._seconds + usual
        else:
            # in this order of rounding, as for whole files
            self._seconds = picture.pts * float(self._tick.numerator) / self._tick.denominator
        stated = packet.duration * self._tick if packet else 0
        self._tally.last = float(stated or 1 / self._rate)
        return self._seconds

    def _is_sound(self, picture: VideoFrame, packet: _Packet | None) -> bool:
        first = self._first_stamp
        if packet and packet.start == 0 and first is not None and packet.stamp < first:
            self._tally.lose(_BEFORE_KEY)
            return False
        if picture.is_corrupt and packet is not None:
            self._bad.append(packet.number)
        if packet is None:
            is_sound = not picture.is_corrupt
        else:
            is_sound = not any(packet.start <= bad <= packet.number for bad in self._bad)
        if not is_sound:
            self._tally.lose("frames are damaged")
        return is_sound

    def _rgb(self, picture: VideoFrame) -> np.ndarray:
        """(H, W, 3), upright as the first picture's display matrix says."""
        if self._to_rgb is None:
            try:
                self._to_rgb = converter(display_of(picture))
            except ValueError as error:
                raise VideoError(str(error)) from error
        return self._to_rgb(picture)
