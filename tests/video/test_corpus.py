"""Media files of every kind and flaw: frames and seconds are exact, or one sentence says what is wrong.

The tables of files are here, by name with codec, options and what must be read; corpus.py has their
makers. Each frame's number is drawn in its picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.video.conftest import OUTCOME
from tests.video.corpus import (
    EVEN,
    PAUSED,
    PLAIN,
    RATE,
    REORDERED,
    UNEVEN,
    Truth,
    cut,
    cut_and_joined,
    cut_index,
    edited,
    encode,
    flawed,
    joined,
    late_pieces,
    number_in,
    repeat,
    repeated_pictures,
    shift,
    stampless,
    turned,
    unmarked,
    without,
)
from timeviper_fast.errors import VideoError
from timeviper_fast.video import Video, open_video

Case = tuple[Callable[[Path], object], Truth]
TICK = Fraction(1, RATE)
QUIET = {"x265-params": "log-level=none:keyint=10"}
MOVED = "the time stamps start anew in {}"
# seconds by which containers without negative decode stamps move a film with reordered frames
DELAYS = {
    "h264 reordered.flv": 0.08,
    "h264 reordered.ts": 0.08,
    "h264 open groups.ts": 0.08,
    "h265.ts": 0.08,
    "mpeg2.ts": 0.04,
    "mpeg2.mpg": 0.54,
    "uneven.ts": 0.06,
    "paused, reordered.ts": 0.08,
    "paused, h265.m2ts": 0.08,
}


def sound_files() -> dict[str, Case]:
    """Containers and codecs without a flaw."""
    films: dict[str, dict] = {
        "h264.mp4": {"options": PLAIN},
        "h264 reordered.mp4": {"options": REORDERED},
        "h264 reordered.mov": {"options": REORDERED},
        "h264 reordered.mkv": {"options": REORDERED},
        "h264 reordered.flv": {"options": REORDERED},
        "h264 reordered.ts": {"options": REORDERED},
        "h264 reordered.avi": {"options": REORDERED, "tick": TICK},
        "h264 one group.mp4": {"options": {"g": "1000", "bf": "3"}},
        "h264 all key.mkv": {"options": {"g": "1"}},
        "h264 open groups.ts": {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}},
        "h264 refreshed.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
        "h265.mp4": {"codec": "libx265", "options": QUIET},
        "h265.mkv": {"codec": "libx265", "options": QUIET},
        "h265.ts": {"codec": "libx265", "options": QUIET},
        "vp8.webm": {"codec": "libvpx", "options": {"g": "10"}},
        "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "10", "deadline": "realtime"}},
        "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "10"}, "tick": TICK},
        "mpeg4 reordered.avi": {"codec": "mpeg4", "options": {"bf": "2"}, "tick": TICK},
        "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2", "g": "10"}, "tick": TICK},
        "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "10"}, "tick": TICK},
        "wmv2.wmv": {"codec": "wmv2", "options": {"g": "10"}},
        "mpeg4 in.asf": {"codec": "msmpeg4", "options": {"g": "10"}},
        "flv1.flv": {"codec": "flv", "options": {"g": "10"}},
        "mjpeg.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
        "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p", "tick": TICK},
        "raw.y4m": {"codec": "wrapped_avframe", "tick": TICK},
        "qtrle.mov": {"codec": "qtrle", "pixels": "rgb24"},
        "uneven.mp4": {"seconds": UNEVEN, "options": REORDERED},
        "uneven.mkv": {"seconds": UNEVEN, "options": PLAIN},
        "uneven.ts": {"seconds": UNEVEN, "options": REORDERED, "tick": Fraction(1, 90_000)},
        "uneven, reordered.mkv": {"seconds": UNEVEN, "options": REORDERED},
        "uneven.wmv": {"seconds": UNEVEN, "codec": "wmv1"},
        # longer pauses than those that are taken for another clock where packets are missing
        "paused.ts": {"seconds": PAUSED, "options": PLAIN},
        "paused, reordered.ts": {"seconds": PAUSED, "options": REORDERED},
        "paused, h265.m2ts": {"seconds": PAUSED, "codec": "libx265", "options": QUIET},
        # sizes and depths
        "odd size.mkv": {"codec": "ffv1", "size": (47, 63), "pixels": "yuv444p"},
        "odd size.mov": {"codec": "mjpeg", "size": (49, 71), "pixels": "yuvj444p"},
        "odd size.webm": {
            "codec": "libvpx-vp9",
            "size": (51, 65),
            "options": {"deadline": "realtime"},
        },
        "grey of 8 bits.mkv": {"codec": "ffv1", "pixels": "gray"},
        "10 bits.mp4": {"options": REORDERED, "pixels": "yuv420p10le"},
        "10 bits.mkv": {"codec": "libx265", "options": QUIET, "pixels": "yuv420p10le"},
        "10 bits.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
        "12 bits.mkv": {"codec": "ffv1", "pixels": "yuv420p12le"},
        "16 bits.mkv": {"codec": "ffv1", "pixels": "yuv444p16le"},
        "grey of 16 bits.mkv": {"codec": "ffv1", "pixels": "gray16le"},
        # The sound is longer than the pictures. Such a file is not cut off.
        "longer sound.mkv": {"sound": 4.0},
        "longer sound.wmv": {"codec": "wmv2", "sound": 4.0},
        "longer sound.avi": {"codec": "mpeg4", "sound": 4.0, "tick": TICK},
        "late.mp4": {"seconds": [7 + i for i in EVEN], "options": REORDERED},
        "in pieces.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}, "options": PLAIN},
    }
    return {
        name: (
            partial(encode, **film),
            Truth(
                seconds=film.get("seconds", EVEN),
                start=DELAYS.get(name, 0.0),
                sizes=(film.get("size", (48, 64)),),
            ),
        )
        for name, film in films.items()
    }


def flawed_stamps() -> dict[str, Case]:
    """One flawed stamp: repeated, falling or jumping, where frames are reordered and where not."""
    cases: dict[str, Case] = {}
    for suffix in ("mp4", "mkv", "mov", "ts", "flv"):
        for order, options in (("plain", PLAIN), ("reordered", REORDERED)):
            said = r"1 of 40 time stamps are mended \(1 repeated\)"
            start = 1.08 if order == "reordered" and suffix != "mkv" else 1.0
            truth = Truth(start=start, loose=range(15, 24), says=said)
            make = partial(flawed, edit=repeat(18), options=options)
            cases[f"repeated, {order}.{suffix}"] = make, truth
    for suffix in ("mp4", "mkv", "ts"):
        for kind, seconds in (("falling", -0.3), ("jumping", 1000.0)):
            make = partial(flawed, edit=shift(18, seconds), options=PLAIN)
            cases[f"{kind}.{suffix}"] = (
                make,
                Truth(start=1.0, loose=[18], says="time stamps are mended"),
            )
    for kind, seconds in (("falling", -0.3), ("rising", 0.3), ("jumping", 1000.0)):
        for suffix, start in (("mp4", 1.08), ("ts", 1.08), ("mkv", 1.0)):
            make = partial(flawed, edit=shift(18, seconds), options=REORDERED)
            truth = Truth(start=start, loose=[18], says="1 of 40 time stamps are mended")
            cases[f"{kind}, reordered.{suffix}"] = make, truth
    for suffix in ("mp4", "mkv", "ts"):
        make = partial(flawed, edit=shift(39, 1000.0), options=PLAIN)
        truth = Truth(
            [*EVEN[:39], 1000 + EVEN[39]], start=1.0, says="last frame is 1000.04 s from its"
        )
        cases[f"last jumping.{suffix}"] = make, truth
    for name, frames in (("one", [12]), ("three", [11, 12, 25])):
        said = rf"{len(frames)} of 40 time stamps are mended \({len(frames)} missing\)"
        make = partial(stampless, frames=frames, options=PLAIN)
        cases[f"{name} missing.ts"] = make, Truth(loose=frames, says=said)
        make = partial(stampless, frames=frames, options=REORDERED)
        cases[f"{name} missing, reordered.ts"] = (
            make,
            Truth(start=0.08, loose=range(9, 31), says=said),
        )
    return cases


def joined_files() -> dict[str, Case]:
    """Streams behind each other, each with a clock of its own."""
    later = [500 + i for i in EVEN]
    two, three = ([i / RATE for i in range(parts * 40)] for parts in (2, 3))
    inserted = [{}, {"seconds": EVEN[:20]}, {"seconds": [1.6 + i for i in EVEN]}]
    cases: dict[str, tuple[list[dict], list[float], str]] = {
        "twice the same.ts": ([{}, {}], two, "1 place"),
        "thrice, reordered.ts": ([{"options": REORDERED}] * 3, three, "2 places"),
        "back in time.ts": ([{"seconds": later}, {}], two, "1 place"),
        "ahead in time.ts": ([{}, {"seconds": later}], two, "1 place"),
        "inserted.ts": (inserted, [i / RATE for i in range(100)], "2 places"),
        # the clock goes on, and packets are counted anew
        "joined seamlessly.ts": ([{}, {"seconds": [1.6 + i for i in EVEN]}], two, ""),
        "joined with a gap.ts": (
            [{}, {"seconds": [1.9 + i for i in EVEN]}],
            [*EVEN, *[1.9 + i for i in EVEN]],
            "",
        ),
        "back a little.ts": ([{}, {"seconds": [1.5 + i for i in EVEN]}], two, "1 place"),
        "overlapping, reordered.ts": (
            [{"options": REORDERED}, {"options": REORDERED, "seconds": [1.6 + i for i in EVEN]}],
            two,
            "1 place",
        ),
        "three frames inserted.ts": (
            [{}, {"seconds": [500, 500.04, 500.08]}, {"seconds": [1.6 + i for i in EVEN]}],
            [i / RATE for i in range(83)],
            "2 places",
        ),
        "joined.m2ts": ([{}, {"seconds": [1.6 + i for i in EVEN]}], two, ""),
    }
    starts = {
        "thrice, reordered.ts": 0.08,
        "overlapping, reordered.ts": 0.08,
        "back in time.ts": 500.0,
    }
    files: dict[str, Case] = {
        name: (
            lambda path, parts=parts: joined(path, *parts),
            Truth(
                seconds=seconds, start=starts.get(name, 0.0), says=places and MOVED.format(places)
            ),
        )
        for name, (parts, seconds, places) in cases.items()
    }
    later = {"seconds": [1.6 + i for i in EVEN]}
    files["joined, unmarked.ts"] = lambda path: unmarked(path, {}, later), Truth(two)
    return files


def damaged_files() -> dict[str, Case]:
    """Lost packets, cut files, cut indexes."""
    cases: dict[str, Case] = {}
    for packet in (1, 2, 11, 14, 25, 31):
        # the packet's data goes to the one before it, which is damaged from there on
        gone = set(range(packet - 1, packet // 10 * 10 + 10))
        sound = [number for number in range(40) if number not in gone]
        truth = Truth(numbers=sound, lost=len(gone) - 1)
        cases[f"lost {packet}.ts"] = partial(without, frame=packet, options=PLAIN), truth
    gone = set(range(19, 30))
    truth = Truth(numbers=[number for number in range(40) if number not in gone], lost=10)
    cases["lost key frame.ts"] = partial(without, frame=20, options=PLAIN), truth
    for suffix in ("mp4", "mov"):
        for share in (0.05, 0.15, 0.25, 0.27, 0.29, 0.4, 0.8):
            words = "its index, .* is not whole|cannot be decoded|ends early"
            make = partial(cut_index, share=share)
            cases[f"index cut at {share:.0%}.{suffix}"] = make, Truth(refused=words)
    # the clock starts anew behind a picture that is cut
    options = {"x265-params": "log-level=none:keyint=13:scenecut=0:bframes=0"}
    truth = Truth(
        [i / RATE for i in range(80)],
        numbers=[*range(39), *range(40, 80)],
        says=MOVED.format("1 place"),
        lost=1,
    )
    make = partial(cut_and_joined, codec="libx265", options=options, grain=60)
    cases["cut and joined, h265.ts"] = make, truth
    # transport streams declare no length, so that a note is all that can be said
    for suffix, frames in (("ts", 27), ("m2ts", 33)):
        truth = Truth(EVEN[:frames], says="it ends within a packet: .* cut off")
        cases[f"cut.{suffix}"] = partial(cut, share=0.7, options=PLAIN), truth
    truth = Truth(EVEN[:27], says="it ends within a frame: .* cut off")
    cases["cut.y4m"] = partial(cut, share=0.7, codec="wrapped_avframe", tick=TICK), truth
    for suffix in ("mp4", "flv"):
        truth = Truth(says="another file follows .*; it is not read")
        cases[f"joined.{suffix}"] = (lambda path: joined(path, {}, {})), truth
    codecs = {"mkv": "libx264", "avi": "mpeg4", "wmv": "wmv2", "mxf": "mpeg2video"}
    for suffix, codec in codecs.items():
        film = {"codec": codec, "tick": TICK if suffix in ("avi", "mxf") else Fraction(1, 1000)}
        make = partial(cut, share=0.7, options={"g": "10"}, **film)
        truth = Truth(refused="it ends early: .* of its frames are missing")
        cases[f"cut.{suffix}"] = make, truth
    return cases


# edit lists: pieces (length, start), the seconds of all frames, and the numbers that they show
EDITS: dict[str, tuple[list[tuple[float, float]], list[float], list[int]]] = {
    "edited in two pieces": ([(0.8, 0.0), (0.8, 0.8)], EVEN, list(range(40))),
    "middle cut out": ([(0.4, 0.0), (0.8, 0.8)], EVEN[:30], [*range(10), *range(20, 40)]),
    "shown twice": ([(0.8, 0.0), (0.8, 0.0)], EVEN, [*range(20), *range(20)]),
    "halves swapped": ([(0.8, 0.8), (0.8, 0.0)], EVEN, [*range(20, 40), *range(20)]),
    "pause first": ([(1.0, -1), (1.6, 0.0)], [1 + i for i in EVEN], list(range(40))),
    "beginning cut off": ([(1.2, 0.4)], EVEN[:30], list(range(10, 40))),
}


def shaped_files() -> dict[str, Case]:
    """Display matrices, a change of size, repeated pictures, a late beginning."""
    cases: dict[str, Case] = {
        "late pieces.mp4": (late_pieces, Truth(EVEN[20:], numbers=range(20, 40))),
        "other size.ts": (
            lambda path: joined(path, {}, {"size": (80, 32)}),
            Truth(
                [i / RATE for i in range(80)],
                says=MOVED.format("1 place"),
                sizes=((48, 64), (80, 32)),
            ),
        ),
    }
    for name, options in (("plain", {"g": "10"}), ("reordered", {"g": "10", "bf": "2"})):
        seconds = [(i + i // 8 * 8) / RATE for i in range(40)]
        make = partial(repeated_pictures, options=options)
        cases[f"repeated pictures, {name}.avi"] = make, Truth(seconds)
    for name, options in (("plain", PLAIN), ("reordered", REORDERED)):
        for edit, (pieces, seconds, numbers) in EDITS.items():
            make = partial(edited, pieces=pieces, options=options)
            cases[f"{edit}, {name}.mp4"] = make, Truth(seconds, numbers=numbers)
    for turn in range(4):
        for mirror in (1, -1):
            a, b = ((1, 0), (0, 1), (-1, 0), (0, -1))[turn]
            matrix = (a * mirror, b * mirror, -b, a)
            undo = partial(upright, turn=turn, mirrored=mirror < 0)
            size = (64, 48) if turn % 2 else (48, 64)
            name = f"turned {90 * turn}{', mirrored' if mirror < 0 else ''}.mp4"
            cases[name] = partial(turned, matrix=matrix), Truth(turn=undo, sizes=(size,))
    return cases


def upright(rgb: np.ndarray, turn: int, mirrored: bool) -> np.ndarray:
    """Undo a turn to the right by quarters, and then a mirroring across."""
    stored = np.rot90(rgb, turn)
    return stored[:, ::-1] if mirrored else stored


CORPUS = {
    **sound_files(),
    **flawed_stamps(),
    **joined_files(),
    **damaged_files(),
    **shaped_files(),
}


@pytest.mark.parametrize("name", CORPUS)
def test_a_file(tmp_path: Path, name: str, record_property: Callable[[str, object], None]) -> None:
    make, truth = CORPUS[name]
    path = tmp_path / name
    make(path)
    if truth.refused:
        with pytest.raises(VideoError, match=truth.refused) as refusal:
            read(path, truth, "raise")
        assert str(refusal.value).startswith(str(path))
        assert "\n" not in str(refusal.value)
        record_property(OUTCOME, "refused")
        return
    damaged = truth.numbers is not None and len(truth.numbers) < len(truth.seconds)
    if damaged:
        with pytest.raises(VideoError, match="cannot be decoded"):
            read(path, truth, "raise")
    numbers, seconds, video = read(path, truth, "use" if damaged else "raise")
    expected = list(range(len(truth.seconds)) if truth.numbers is None else truth.numbers)
    assert numbers == expected
    assert video.sizes == truth.sizes
    assert video.lost_frames == truth.lost
    assert re.search(truth.says, " ".join(video.notes)) if truth.says else not video.notes
    times = [truth.seconds[number] for number in numbers] if damaged else truth.seconds
    for number, second, time in zip(numbers, seconds, times):
        slack = truth.slack if number in truth.loose else 0.0012
        assert second == pytest.approx(truth.start + time, abs=slack), number
    record_property(OUTCOME, "read with mended times" if truth.loose else "read exactly")


def read(path: Path, truth: Truth, on_error: str) -> tuple[list[int], list[float], Video]:
    """The numbers in all pictures, and their times."""
    numbers: list[int] = []
    seconds: list[float] = []
    with open_video(path, on_error=on_error) as video:
        for frames in video.frames(range(video.num_frames), 8):
            numbers += [number_in(truth.turn(rgb)) for rgb in frames.rgb.numpy()]
            seconds += frames.seconds.tolist()
    return numbers, seconds, video


def test_the_corpus_has_at_least_sixty_files() -> None:
    assert len(CORPUS) >= 60
