"""Makers of small video files with every kind of flaw; each frame shows its number.

A file of the corpus is `name: (maker, truth)`. The maker writes the file; the truth is what must be
read from it, or the sentence that must be said about it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from fractions import Fraction
from pathlib import Path
from struct import pack
from typing import Any, NamedTuple

import numpy as np

from tests.video.common import av

FRAMES, RATE = 40, 25
EVEN = [i / RATE for i in range(FRAMES)]
# in whole milliseconds, with pauses of seconds, as screen recorders write them
UNEVEN = np.cumsum([0] + [3.0 if i % 13 == 12 else 0.02 + i % 5 / 50 for i in range(39)]).tolist()
# two pauses, of 31 s and of an hour
PAUSED = [i / RATE + (31 if i >= 15 else 0) + (3600 if i >= 27 else 0) for i in range(FRAMES)]
# packets in the order of their display, and with two pictures that refer to a later one
PLAIN = {"bf": "0", "g": "10", "sc_threshold": "0"}
REORDERED = {"bf": "2", "g": "10", "sc_threshold": "0", "b_strategy": "0"}


class Truth(NamedTuple):
    """What a file holds.

    Attributes:
        seconds: of every frame.
        start: seconds by which the container moves the beginning.
        numbers: of the frames that are sound, in order; None: all of them.
        loose: frames whose stamps are flawed; their times may be off by `slack` seconds.
        says: a regular expression for the video's notes; "" for none.
        refused: a regular expression for the error; then nothing else is looked at.
        sizes: (height, width) of the frames in the order of their appearance.
        turn: undoes the display matrix for the picture that is read.
        lost: what `lost_frames` says in the end; None where it is an estimate.
    """

    seconds: Sequence[float] = EVEN
    start: float = 0.0
    numbers: Sequence[int] | None = None
    loose: Container[int] = ()
    slack: float = 0.05
    says: str = ""
    refused: str = ""
    sizes: tuple[tuple[int, int], ...] = ((48, 64),)
    turn: Callable[[np.ndarray], np.ndarray] = np.asarray
    lost: int | None = 0


def drawn(number: int, height: int = 48, width: int = 64, bits: int = 8) -> np.ndarray:
    """(height, width, 3): the number's 16 bits as four rows of four black or white cells."""
    rows, columns = (np.arange(side) * 4 // side for side in (height, width))
    white = number >> (rows[:, None] * 4 + columns) & 1
    grey = np.where(white, 225, 30).astype(np.uint16 if bits > 8 else np.uint8) * (
        257 if bits > 8 else 1
    )
    return np.repeat(grey[..., None], 3, axis=-1)


def number_in(rgb: np.ndarray) -> int:
    """The number that a picture of any size shows."""
    height, width = rgb.shape[:2]
    number = 0
    for bit in range(16):
        row, column = divmod(bit, 4)
        cell = rgb[
            row * height // 4 + 3 : (row + 1) * height // 4 - 3,
            column * width // 4 + 3 : (column + 1) * width // 4 - 3,
        ]
        number |= int(cell.mean() > 127) << bit
    return number


def encode(
    path: Path,
    seconds: Sequence[float] = EVEN,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    *,
    size: tuple[int, int] = (48, 64),
    pixels: str = "yuv420p",
    tick: Fraction = Fraction(1, 1000),
    sound: float = 0.0,
    container: dict[str, str] | None = None,
    first: int = 0,
    grain: int = 0,
) -> Path:
    """A film with a frame at each of `seconds`, and silence for `sound` seconds beside it.

    Grey values are off by up to `grain`, at random, so that pictures take many bytes.
    """
    deep = "16" in pixels or "48" in pixels
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = tick
        track = out.add_stream("pcm_s16le", rate=16_000) if sound else None
        for number, second in enumerate(seconds):
            rgb = drawn(first + number, *size, 16 if deep else 8)
            if grain:
                noise = np.random.default_rng(number).integers(-grain, grain, rgb.shape)
                rgb = np.clip(rgb + noise, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb48le" if deep else "rgb24")
            frame.pts, frame.time_base = round(Fraction(second) / tick), tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        for block in range(int(sound * 10)):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts = 16_000, block * 1600
            out.mux(track.encode(silence))
    return path


def copy(source: Path, target: Path, edit: Callable[[list[Any]], Any] = lambda _: None) -> Path:
    """The same packets in another container, after `edit` has changed the list of them."""
    # FFmpeg's muxer ends an edit list at the last stamp, which would hide the packets behind it
    options = {"use_editlist": "0"} if target.suffix in (".mp4", ".mov") else {}
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        edit(packets)
        for packet in packets:
            packet.stream = stream
            new.mux(packet)
    return target


def shift(number: int, seconds: float) -> Callable[[list[Any]], None]:
    """Move the presentation stamp of one frame, by its place on the screen."""

    def edit(packets: list[Any]) -> None:
        by_time = sorted(packets, key=lambda packet: packet.pts)
        by_time[number].pts += round(seconds / by_time[number].time_base)

    return edit


def repeat(number: int) -> Callable[[list[Any]], None]:
    """Give one frame the presentation stamp of the frame before it."""

    def edit(packets: list[Any]) -> None:
        by_time = sorted(packets, key=lambda packet: packet.pts)
        by_time[number].pts = by_time[number - 1].pts

    return edit


def flawed(path: Path, edit: Callable[[list[Any]], None], options: dict[str, str]) -> Path:
    """A film with an edited list of packets."""
    source = encode(path.with_name(f"source of {path.stem}.mp4"), options=options)

    def edit_late(packets: list[Any]) -> None:
        # no container takes a frame that is presented before it is decoded
        for packet in packets:
            packet.pts += round(1 / packet.time_base)
        edit(packets)

    return copy(source, path, edit_late)


def stampless(path: Path, frames: Sequence[int], options: dict[str, str]) -> Path:
    """A transport stream in which some frames, by their order in the file, have no time stamps."""
    data = bytearray(encode(path, options=options).read_bytes())
    for number in frames:
        start = frame_starts(data)[number]
        head = data.index(b"\0\0\1\xe0", start, start + 188)
        # the two highest bits say which stamps follow; what follows is then stuffing
        data[head + 7] &= 0x3F
    path.write_bytes(data)
    return path


def frame_starts(data: bytes) -> list[int]:
    """Where the packets of a transport stream lie that begin a frame of its video, number 256."""
    places = range(0, len(data), 188)
    return [
        at for at in places if (data[at + 1] & 31) << 8 | data[at + 2] == 256 and data[at + 1] & 64
    ]


def without(path: Path, frame: int, **film: Any) -> Path:
    """A transport stream that has lost the first packet of a frame, by its order in the file."""
    data = encode(path, **film).read_bytes()
    start = frame_starts(data)[frame]
    path.write_bytes(data[:start] + data[start + 188 :])
    return path


def cut(path: Path, share: float, **film: Any) -> Path:
    """The first `share` of a file."""
    data = encode(path, **film).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def cut_index(path: Path, share: float) -> Path:
    """A file that ends within its index, the last box."""
    data = encode(path).read_bytes()
    index = data.rindex(b"moov") - 4
    path.write_bytes(data[: index + int((len(data) - index) * share)])
    return path


def joined(path: Path, *parts: dict[str, Any]) -> Path:
    """Transport streams, one behind the other; the frames are numbered throughout."""
    data, first = b"", 0
    for part in parts:
        film = {"options": PLAIN, **part}
        data += encode(path, first=first, **film).read_bytes()
        first += len(film.get("seconds", EVEN))
    path.write_bytes(data)
    return path


def unmarked(path: Path, *parts: dict[str, Any]) -> Path:
    """Joined transport streams whose key frames are not marked in the transport packets."""
    data = bytearray(joined(path, *parts).read_bytes())
    for start in frame_starts(data):
        if data[start + 3] & 32:
            data[start + 5] &= ~64
    path.write_bytes(data)
    return path


def cut_and_joined(path: Path, **film: Any) -> Path:
    """Two transport streams; the first lacks the end of its last picture, a key frame."""
    first = encode(path, **film).read_bytes()
    second = encode(path, first=FRAMES, **film).read_bytes()
    *_, before, last = (
        at for at in range(0, len(first), 188) if (first[at + 1] & 31, first[at + 2]) == (1, 0)
    )
    # the second stream is counted from 0 on, which must not continue the count of the first
    path.write_bytes(first[: before if first[before + 3] & 15 == 15 else last] + second)
    return path


def late_pieces(path: Path) -> Path:
    """A film in fragments without its first two."""
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    data = encode(path, options=PLAIN, container=options).read_bytes()
    at, pieces = 0, []
    while at < len(data):
        if data[at + 4 : at + 8] == b"moof":
            pieces.append(at)
        at += int.from_bytes(data[at : at + 4], "big")
    path.write_bytes(data[: pieces[0]] + data[pieces[2] :])
    return path


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A film whose display matrix is (a b; c d)."""
    data = bytearray(encode(path).read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    place = data.index(b"tkhd") + 44
    for index, value in enumerate([a, b, 0, c, d, 0, 0, 0, 1 << 30]):
        start = place + 4 * index
        data[start : start + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def edited(path: Path, pieces: Sequence[tuple[float, float]], options: dict[str, str]) -> Path:
    """A film whose edit list shows pieces (length, start) in seconds; start -1 is a pause."""
    data = encode(path, options=options).read_bytes()
    start = data.rindex(b"moov") - 4
    index = bytearray(data[start:])
    track = index.index(b"trak") - 4
    delay = 2 / RATE if options is REORDERED else 0.0
    # lengths count in the movie's ticks, starts in the track's; the rate is 1
    movie, film = (
        int.from_bytes(index[(at := index.index(kind) + 16) : at + 4], "big")
        for kind in (b"mvhd", b"mdhd")
    )
    rows = [(length * movie, -1 if at < 0 else (at + delay) * film) for length, at in pieces]
    rows_bytes = b"".join(pack(">iii", round(length), round(at), 1 << 16) for length, at in rows)
    table = box(b"edts", box(b"elst", pack(">ii", 0, len(rows)) + rows_bytes))
    old = index.index(b"edts") - 4
    end = old + int.from_bytes(index[old : old + 4], "big")
    index[old:end] = table
    for place in (0, track):
        size = int.from_bytes(index[place : place + 4], "big") + len(table) - (end - old)
        index[place : place + 4] = size.to_bytes(4, "big")
    path.write_bytes(data[:start] + index)
    return path


def box(kind: bytes, content: bytes) -> bytes:
    """A box of an mp4 file."""
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def repeated_pictures(path: Path, options: dict[str, str]) -> Path:
    """An AVI of an even rate, in which every eighth picture stands for nine: AVI repeats it."""
    source = encode(
        path.with_suffix(".mp4"), codec="mpeg4", options=options, tick=Fraction(1, RATE)
    )

    def edit(packets: list[Any]) -> None:
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number + number // 8 * 8
            packet.time_base = Fraction(1, RATE)

    return copy(source, path, edit)
