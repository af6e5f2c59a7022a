"""Names that look like addresses or patterns, and the stream that is looked at."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.video.common import av, numbers, picture, pictures
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video, write_video

NAMES = [
    "2026-01-01T12:30:00.mp4",
    "Lecture:Intro.mp4",
    "concat:x.mp4",
    "file:x.mp4",
    "http:x.mp4",
    "pipe:0.mp4",
    "-i.mp4",
    "~.mp4",
    "100%d.mp4",
    "%03d.mp4",
    "a*b?.mp4",
    "a|b.mp4",
    "Rue Café.mp4",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, pictures(4))
    return path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("before", ["", "./", "absolute"])
def test_a_name_is_a_file(
    clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(clip)
    video = open_video(os.path.join(tmp_path if before == "absolute" else before, name))
    assert numbers(video.frames(range(4))) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_file_in_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(name, pictures(2))
    assert os.listdir() == [name]
    assert open_video(name).num_frames == 2


def test_bytes_that_are_no_utf_8_name_a_file(clip: bytes, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    try:
        Path(os.fsdecode(name)).write_bytes(clip)
    except OSError:
        pytest.skip("the file system takes UTF-8 names alone")
    assert open_video(os.fsdecode(name)).num_frames == 4


def test_a_percent_sign_in_the_name_of_an_image_is_no_series(tmp_path: Path) -> None:
    """FFmpeg reads this format; with a series it would show the other file."""
    for name, level in (("x%03d.dpx", 200), ("x000.dpx", 20)):
        with av.open(f"file:{tmp_path / name}", "w", "image2", {"update": "1"}) as container:
            stream = container.add_stream("dpx", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    (frames,) = open_video(tmp_path / "x%03d.dpx").frames([0])
    assert frames.rgb.unique().tolist() == [200]


@pytest.mark.parametrize("name", ["https://example.org/a.mp4", "file:///a.mp4", "~/a.mp4"])
def test_an_address_is_no_file_that_is_here(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{name}: no such file or directory"):
        open_video(name)


@pytest.mark.parametrize("name", ["a%03d.png", "a.m3u8", "a.mpd"])
def test_what_is_written_is_one_file(tmp_path: Path, name: str) -> None:
    words = r"it cannot be written \(its container must be one file, got \w+\)"
    with pytest.raises(VideoError, match=words):
        write_video(tmp_path / name, pictures(2))
    assert list(tmp_path.iterdir()) == []


def film_with(path: Path, others: dict[str, int], *, film_at: int) -> None:
    """A film of pictures 0 to 11 beside streams of one large picture, by kind and their number."""
    kinds = [kind for kind, count in others.items() for _ in range(count)]
    kinds.insert(film_at, "film")
    with av.open(str(path), "w") as container:
        streams = []
        for kind in kinds:
            codec = "libx264" if kind == "film" else "mjpeg"
            stream = container.add_stream(codec, rate=12)
            height, width = (48, 64) if kind == "film" else (480, 640)
            stream.height, stream.width = height, width
            stream.pix_fmt = "yuv420p" if kind == "film" else "yuvj420p"
            if kind != "film":
                stream.disposition = getattr(av.stream.Disposition, kind).value
            streams.append(stream)
        for kind, stream in zip(kinds, streams):
            cover = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
            shown = pictures(12) if kind == "film" else [cover]
            for number, rgb in enumerate(shown):
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


@pytest.mark.parametrize("film_at", [0, 1])
@pytest.mark.parametrize("kind", ["attached_pic", "default", "still_image"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_film_beside_a_picture_is_shown(
    tmp_path: Path, suffix: str, kind: str, film_at: int
) -> None:
    path = tmp_path / f"film.{suffix}"
    film_with(path, {kind: 1}, film_at=film_at)
    video = open_video(path)
    assert (video.num_frames, video.size) == (12, (48, 64))
    assert numbers(video.frames([0, 7, 11])) == [0, 7, 11]


def test_of_two_films_the_default_one_is_shown(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=12) for _ in range(2)]
        streams[1].disposition = av.stream.Disposition.default.value
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for first, stream in zip((0, 100), streams):
            for number in range(4):
                frame = av.VideoFrame.from_ndarray(picture(first + number), format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    video = open_video(tmp_path / "two.mkv")
    assert numbers(video.frames(range(video.num_frames))) == [100, 101, 102, 103]
    assert video.notes == ("it holds 2 films; stream 1 (64 x 48) is read, not stream 0 (64 x 48)",)


def test_a_recording_of_several_programs_says_which_film_is_read(tmp_path: Path) -> None:
    path = tmp_path / "programs.ts"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg2video", rate=25) for _ in range(5)]
        for stream, width in zip(streams, (32, 64, 128, 64, 64)):
            stream.height, stream.width, stream.pix_fmt = 48, width, "yuv420p"
        for number in range(6):
            for stream in streams:
                rgb = np.ascontiguousarray(picture(number)[:, [0] * stream.width])
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    (note,) = open_video(path).notes
    assert note == (
        "it holds 5 films; stream 0 (32 x 48) is read, not stream 1 (64 x 48), "
        "stream 2 (128 x 48), stream 3 (64 x 48), ..."
    )


def test_a_cover_picture_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", "mp4") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic.value
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(1), format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"it has no video stream \(it holds a cover picture\)"):
        open_video(path)
