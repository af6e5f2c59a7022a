"""Every file of a directory is looked at, or named as left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image, features

from tests.video.common import number_of, numbers, picture, pictures, sound_only
from timeviper_fast.errors import VideoError
from timeviper_fast.video import Video, open_video, read_video, write_video

SUFFIXES = [
    "bmp", "gif", "jfif", "jpe", "jpg", "pgm", "png", "ppm", "qoi", "tga", "tif", "webp", "PNG",
    *(["jp2", "j2k"] if features.check("jpg_2000") else []),
    *(["avif"] if features.check("avif") else []),
]  # fmt: skip


def save(number: int, path: Path, kind: str | None = None) -> None:
    if path.suffix in (".jfif", ".jpe"):
        kind = "JPEG"
    image = Image.fromarray(picture(number))
    if path.suffix == ".pgm":
        image = image.convert("L")
    image.save(path, kind)


def all_of(video: Video) -> list[int]:
    return numbers(video.frames(range(video.num_frames)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_of_every_format_keep_their_places(tmp_path: Path, suffix: str) -> None:
    for number in range(4):
        save(number, tmp_path / f"{number}.{suffix if number % 2 else 'png'}")
    video = open_video(tmp_path)
    assert all_of(video) == [0, 1, 2, 3]
    assert video.notes == ()
    assert [number_of(frame) for frame in read_video(tmp_path / f"3.{suffix}").rgb] == [3]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "PPM"])
def test_an_image_is_known_by_its_content(tmp_path: Path, kind: str) -> None:
    save(0, tmp_path / "0.png")
    save(1, tmp_path / "1", kind)
    save(2, tmp_path / "2.frame", kind)
    assert all_of(open_video(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize("name", ["1.heic", "1.jxl", "1.dng", "1.png"])
def test_an_image_that_cannot_be_read_keeps_its_place(tmp_path: Path, name: str) -> None:
    save(0, tmp_path / "0.png")
    save(2, tmp_path / "2.png")
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(VideoError, match=rf"frame 1 at 1.000 s cannot be decoded \({name}: "):
        read_video(tmp_path)
    frames = read_video(tmp_path, on_error="use")
    assert ([number_of(f) for f in frames.rgb], frames.seconds.tolist()) == ([0, 2], [0, 2])
    assert frames.lost_frames == 1


def test_a_raw_photograph_is_not_seen_by_its_thumbnail(tmp_path: Path) -> None:
    save(0, tmp_path / "0.png")
    save(1, tmp_path / "1.dng", "TIFF")
    with pytest.raises(VideoError, match=r"1.dng: raw photographs are not read"):
        read_video(tmp_path)


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    save(0, tmp_path / "0.png")
    save(1, tmp_path / "1.png")
    for name in (".hidden", "._0.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    for name in ("notes.txt", "meta.json", "sound.wav"):
        (tmp_path / name).write_text("P3? no, words")
    (tmp_path / "2.png").mkdir()
    video = open_video(tmp_path)
    assert all_of(video) == [0, 1]
    (note,) = video.notes
    assert note == (
        "left out of the directory: 1 directory (2.png), 3 files of another kind (meta.json, "
        "notes.txt, sound.wav), 5 hidden files (._0.png, .DS_Store, .hidden, ...)"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_among_images_is_not_waited_for(tmp_path: Path) -> None:
    save(0, tmp_path / "0.png")
    os.mkfifo(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "nowhere")
    video = open_video(tmp_path, on_error="use")
    assert video.notes == ("left out of the directory: 1 special file (1.png)",)
    # a link to nothing has the name of an image, so it is one that is lost
    assert (all_of(video), video.lost_frames) == ([0], 1)


def test_names_that_differ_in_case_or_zeros_only_have_an_order(tmp_path: Path) -> None:
    names = ["a01.png", "A1.png", "a1.png", "a2.png", "a10.png"]
    for number, name in enumerate(names):
        save(number, tmp_path / name)
    if len(list(tmp_path.iterdir())) < len(names):
        pytest.skip("the file system ignores case")
    by_name = {name: number for number, name in enumerate(names)}
    want = sorted(names[:3]) + names[3:]
    assert all_of(open_video(tmp_path)) == [by_name[name] for name in want]


def test_a_video_and_its_cover(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", pictures(6))
    assert all_of(open_video(tmp_path)) == [0, 1, 2, 3, 4, 5]
    save(99, tmp_path / "cover.png")
    video = open_video(tmp_path)
    assert all_of(video) == [0, 1, 2, 3, 4, 5]
    assert video.notes == ("left out of the directory: 1 image (cover.png)",)
    with pytest.raises(ValueError, match="fps must be left out for a video file"):
        open_video(tmp_path, fps=2)


@pytest.mark.parametrize("name", ["film.y4m", "film.f4v", "film.mjpeg", "film", "film.part"])
def test_films_of_rarer_names_beside_a_cover(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "film.mp4", pictures(6))
    (tmp_path / "film.mp4").rename(tmp_path / name)
    save(99, tmp_path / "cover.png")
    (tmp_path / "LICENSE").write_text("words")
    sound_only(tmp_path / "sound.wav")
    (tmp_path / "sound.wav").rename(tmp_path / "sound")
    video = open_video(tmp_path)
    assert all_of(video) == [0, 1, 2, 3, 4, 5]
    (note,) = video.notes
    assert note == (
        "left out of the directory: 2 files of another kind (LICENSE, sound), 1 image (cover.png)"
    )


def test_images_beside_a_video_are_what_is_read(tmp_path: Path) -> None:
    write_video(tmp_path / "preview.mp4", pictures(6))
    for number in (7, 8):
        save(number, tmp_path / f"{number}.png")
    video = open_video(tmp_path)
    assert all_of(video) == [7, 8]
    assert video.notes == ("left out of the directory: 1 video (preview.mp4)",)


def test_two_videos_are_one_too_many(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mkv"):
        write_video(tmp_path / name, pictures(2))
    words = r"the directory holds 2 videos \(a.mkv, b.mp4\); name the video that is meant"
    with pytest.raises(VideoError, match=words):
        open_video(tmp_path)


def test_a_directory_without_images_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"the directory holds no images \(it is empty\)"):
        open_video(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    words = r"the directory holds no images \(1 file of another kind \(notes.txt\)\)"
    with pytest.raises(VideoError, match=words):
        open_video(tmp_path)
