"""Whether a file is cut off, and how many frames are missing at its end."""

from __future__ import annotations

import re
from fractions import Fraction
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from timeviper_fast.video.boxes import boxes, is_boxed
from timeviper_fast.video.continuity import ends_within_a_packet

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["Declared", "declared", "declared_bytes", "missing_frames", "unread"]

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_SECOND = "another file follows behind the end of this one; it is not read"
_CUT = "it ends within a {}: the recording or download was probably cut off"
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


class Declared(NamedTuple):
    """What a container says about its video stream.

    Attributes:
        frames: the number of its frames, 0 if it states none.
        end: the end in seconds of the video's own clock; None if it states none.
        rate: frames per second.
    """

    frames: int
    end: float | None
    rate: float


def declared(container: InputContainer, stream: VideoStream) -> Declared:
    """The stream's length by the container's account."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(1)
    frames = stream.frames
    # an mxf file states its duration in frames
    if container.format.name == "mxf" and stream.duration and stream.time_base == 1 / rate:
        frames = stream.duration
    return Declared(frames, _declared_end(container, stream), float(rate))


def missing_frames(path: Path, told: Declared, packets: int, end: float, is_broken: bool) -> int:
    """Frames that the file declares and does not hold because its end is cut off.

    Args:
        told: what the container says.
        packets: packets of the stream that were read.
        end: when the last frame ends, in seconds of the video's own clock.
        is_broken: reading ended with an error, or the last packet is not whole.

    Returns:
        0 for a whole file, else an estimate of 1 or more, the frame that is cut off included.
    """
    whole, size = declared_bytes(path), path.stat().st_size
    if whole is not None and whole <= size and not is_broken:
        return 0
    unseen, late = told.frames - packets, 0.0
    if told.end is not None:
        late = (told.end - end) * told.rate
    elif whole is not None and not told.frames:
        late = packets * (whole / size - 1)
    # If the file is shorter than it says, or its table lists more frames than were read, allow 1.5
    # frames. Otherwise allow 1 s, at least 2 frames: a declared duration may be rounded, or another
    # stream's.
    is_cut = unseen > 0 or (whole is not None and whole > size)
    ends_early = late > (1.5 if is_cut else max(2.0, told.rate))
    return max(unseen, round(late), 0) + 1 if is_broken or ends_early else 0


def declared_bytes(path: Path) -> int | None:
    """The size that a file has by its own account; None if it states none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if is_boxed(head):
            return _end_of_boxes(file, size)
        if head.startswith(b"RIFF"):
            return _end_of_riff(file, size)
    if head.startswith(_EBML):
        return _end_of_segment(head)
    if head.startswith(_ASF) and (start := head.find(_ASF_PROPERTIES)) > 0:
        # a file identifier, the size, four times and counts, and flags: the lowest one is set in a
        # broadcast, whose size is unknown
        fields = head[start + 24 : start + 24 + 68]
        return None if fields[64] & 1 else int.from_bytes(fields[16:24], "little") or None
    return None


def unread(path: Path, container: str) -> list[str]:
    """Sentences about the end of a file that FFmpeg leaves out without an error.

    Args:
        container: FFmpeg's name of the format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if "mp4" in container and _has_two_indexes(file, size):
            return [_SECOND]
        if container == "flv" and _has_two_heads(file):
            return [_SECOND]
        if container == "mpegts" and ends_within_a_packet(file, size):
            return [_CUT.format("packet")]
        if container == "yuv4mpegpipe" and _ends_within_a_frame(file, size):
            return [_CUT.format("frame")]
    return []


def _has_two_indexes(file: BinaryIO, size: int) -> bool:
    """Whether an mp4 file that is not in fragments has a second index, which FFmpeg skips."""
    kinds = [box.kind for box in boxes(file, 0, size)]
    return kinds.count(b"moov") > 1 and b"moof" not in kinds


def _has_two_heads(file: BinaryIO) -> bool:
    """Whether a second flv file begins: its name, version and flags, the head's length, and 0."""
    with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return re.compile(rb"FLV\x01.\x00{3}\x09\x00{4}", re.DOTALL).search(data, 9) is not None


def _ends_within_a_frame(file: BinaryIO, size: int) -> bool:
    """Whether a y4m file, a line and frames of equal sizes, lacks the end of its last frame."""
    file.seek(0)
    start = len(file.readline(4096))
    with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        step = data.find(b"FRAME", start + 5) - start
        if step <= 0 or (size - start) % step == 0:
            return False
        return data[start + (size - start) // step * step :][:5] in b"FRAME"


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    end = 0
    for box in boxes(file, 0, size):
        end = box.end
    file.seek(min(end, size))
    # Fewer bytes than a box head has are a cut box head, unless all of them are zero.
    return end + 8 if any(file.read(8)) and size - end < 8 else end


def _end_of_riff(file: BinaryIO, size: int) -> int | None:
    """The end of the last RIFF chunk; files above 1 GB have several."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in (0, 2**32 - 1):
            break
        end += 8 + length + length % 2
    return end or None


def _end_of_segment(head: bytes) -> int | None:
    """The end of a Matroska file: a header, and a segment that may state its size."""
    length, start = _variable_length(head, 4)
    if length is None or head[start + length :][:4] != _SEGMENT:
        return None
    length, start = _variable_length(head, start + length + 4)
    return None if length is None else start + length


def _variable_length(data: bytes, at: int) -> tuple[int | None, int]:
    """A number of EBML, None if it stands for "unknown", and where the data behind it begins."""
    width = 9 - data[at : at + 1][0].bit_length() if data[at : at + 1] else 9
    bits = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
    known = width < 9 and bits != (1 << 7 * width) - 1
    return (bits if known else None), at + width


def _declared_end(container: InputContainer, stream: VideoStream) -> float | None:
    """The end of the video in seconds of its own clock, if the container declares it.

    ASF declares the length of the whole file only, and mp4 files in fragments that of nothing. That
    of MPEG streams is FFmpeg's own, from the first and the last time stamp.
    """
    name, tick = container.format.name, stream.time_base
    if name in ("asf", "mpeg", "mpegts") or ("mp4" in name and not stream.frames):
        return None
    if stream.duration and tick:
        return float((stream.duration + (stream.start_time or 0)) * tick)
    if "matroska" in name:
        if "DURATION" in stream.metadata:
            hours, minutes, seconds = stream.metadata["DURATION"].split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        if container.duration and len(container.streams) == 1:
            return container.duration / 1e6
    return None
