"""Directories of images and animated images as videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base

from tests.video.common import HEIGHT, WIDTH, number_of, numbers, picture
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video, read_video


def test_images_come_in_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 10, 11, 100):
        Image.fromarray(picture(number)).save(tmp_path / f"Frame{number}.png")
    (tmp_path / "._Frame1.png").write_bytes(b"a leftover")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "folder.png").mkdir()
    video = open_video(tmp_path, fps=2)
    assert numbers(video.frames(range(5), 2)) == [1, 2, 10, 11, 100]
    assert video.seconds.tolist() == [0, 0.5, 1, 1.5, 2]
    assert (video.fps, video.duration, video.size) == (2, 2.5, (HEIGHT, WIDTH))
    assert open_video(tmp_path).fps == 1.0
    assert [number_of(f) for f in read_video(tmp_path / "Frame10.png").rgb] == [10]


def animate(path: Path, numbers: list[int], milliseconds: list[int], **options) -> None:
    first, *others = (Image.fromarray(picture(number)) for number in numbers)
    extra = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=milliseconds, **extra, **options)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animated_image_is_a_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving.{suffix}"
    animate(path, [3, 1, 4, 15, 9], [100, 250, 50, 400, 200])
    video = open_video(path)
    assert video.seconds.tolist() == pytest.approx([0, 0.1, 0.35, 0.4, 0.8])
    assert (video.duration, video.fps) == pytest.approx((1.0, 5.0))
    assert (video.size, video.lost_frames) == ((HEIGHT, WIDTH), 0)
    assert numbers(video.frames(range(5), 2)) == [3, 1, 4, 15, 9]
    assert numbers(video.frames([1, 3, 4])) == [1, 15, 9]
    with pytest.raises(ValueError, match="fps must be left out for a video file"):
        open_video(path, fps=2)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animation_is_turned_as_exif_says(tmp_path: Path, suffix: str) -> None:
    path, exif = tmp_path / f"moving.{suffix}", Image.Exif()
    exif[Base.Orientation] = 6
    animate(path, [3, 1, 4], [100, 100, 100], exif=exif)
    video = open_video(path)
    assert video.size == (WIDTH, HEIGHT)
    (frames,) = video.frames(range(3))
    # a quarter turn to the right; turned back for comparison
    assert [number_of(frame.flip(1).transpose(0, 1)) for frame in frames.rgb] == [3, 1, 4]


def test_16_bit_grey_of_netpbm_is_seen_by_its_high_byte(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 2400).reshape(40, 60).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 60 40 65535\n" + ramp.tobytes())
    seen = read_video(tmp_path).rgb[0].numpy()
    assert np.array_equal(seen, np.stack([ramp // 256] * 3, axis=-1))


def test_delays_too_short_to_be_meant_last_as_browsers_show_them(tmp_path: Path) -> None:
    animate(tmp_path / "a.gif", [1, 2, 3], [0, 10, 20])
    assert open_video(tmp_path / "a.gif").seconds.tolist() == pytest.approx([0, 0.1, 0.2])


def test_what_stands_in_for_a_png_animation_is_no_frame_of_it(tmp_path: Path) -> None:
    animate(tmp_path / "a.png", [7, 1, 2], [100, 100, 100], default_image=True)
    video = open_video(tmp_path / "a.png")
    assert numbers(video.frames(range(video.num_frames))) == [1, 2]


def test_a_damaged_animation_is_used_on_request(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    animate(path, [1, 2, 3, 4], [100] * 4)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"fdAT") + 8])
    with pytest.raises(VideoError, match="it ends early: 1 of its frames is missing"):
        open_video(path)
    video = open_video(path, on_error="use")
    assert numbers(video.frames(range(video.num_frames))) == [1, 2, 3]
    assert video.lost_frames == 1


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
@pytest.mark.parametrize("on_error", ["raise", "use"])
def test_an_animated_image_is_no_frame_of_a_directory(
    tmp_path: Path, suffix: str, on_error: str
) -> None:
    Image.fromarray(picture(1)).save(tmp_path / f"1.{suffix}")
    assert len(read_video(tmp_path, on_error=on_error).rgb) == 1
    animate(tmp_path / f"2.{suffix}", [2, 3], [100, 100])
    with pytest.raises(VideoError, match=rf"2.{suffix}: an animated image is a video of its own"):
        read_video(tmp_path, on_error=on_error)


def test_pages_are_no_animation(tmp_path: Path) -> None:
    """Only the first picture counts of a TIFF with pages or a photograph with a second view."""
    first, second = (Image.fromarray(picture(number)) for number in (1, 2))
    first.save(tmp_path / "1.tif", save_all=True, append_images=[second])
    first.save(tmp_path / "2.jpg", "MPO", save_all=True, append_images=[second])
    assert [number_of(frame) for frame in read_video(tmp_path).rgb] == [1, 1]


def test_damaged_and_odd_images(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[: len(data) // 2])
    Image.fromarray(picture(2)[:10]).save(tmp_path / "2.png")
    with pytest.raises(VideoError, match=r"frame 1 at 1.000 s cannot be decoded \(1.png: "):
        read_video(tmp_path)
    with pytest.raises(VideoError, match=r"2.png is 64x10, the first image 64x48"):
        list(open_video(tmp_path).frames([2]))
    frames = read_video(tmp_path, on_error="use")
    assert [number_of(frame) for frame in frames.rgb] == [0, 3]
    assert (frames.seconds.tolist(), frames.lost_frames) == ([0, 3], 2)


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", "<u2"), ("a.tif", "<u2"), ("big.tif", ">u2")]
)
def test_16_bit_grey_is_seen_by_its_high_byte(tmp_path: Path, name: str, dtype: str) -> None:
    ramp = np.linspace(0, 65535, 2400).reshape(40, 60).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / name)
    seen = read_video(tmp_path).rgb[0].numpy()
    assert np.array_equal(seen, np.stack([ramp // 256] * 3, axis=-1))
    assert len(np.unique(seen)) == 256
    # lying on its side, as EXIF says
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    Image.fromarray(ramp).save(tmp_path / name, exif=exif)
    assert np.array_equal(read_video(tmp_path).rgb[0].numpy(), np.rot90(seen, -1))


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_pixels_of_no_known_range_are_a_fault_of_their_image(
    tmp_path: Path, mode: str, dtype: type
) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "0.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype)).save(tmp_path / "1.tif")
    words = f"1.tif: pixels must be of 8 or 16 bits, got Pillow's mode {mode}"
    with pytest.raises(VideoError, match=rf"frame 1 at 1.000 s cannot be decoded \({words}"):
        read_video(tmp_path)
    with pytest.raises(VideoError, match=rf"no image of it can be decoded \({words}"):
        open_video(tmp_path / "1.tif")
    frames = read_video(tmp_path, on_error="use")
    assert (frames.seconds.tolist(), frames.lost_frames) == ([0], 1)


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 0), (77, 77, 77)),
        ("P", 3, (30, 31, 32)),
        ("RGBA", (10, 200, 30, 0), (10, 200, 30)),
        ("CMYK", (255, 0, 51, 0), (0, 255, 204)),
    ],
)
def test_other_modes_are_seen_as_pillow_converts_them(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], seen: tuple[int, ...]
) -> None:
    image = Image.new(mode, (8, 6), colour)
    if mode == "P":
        image.putpalette([10 * (i // 3) + i % 3 for i in range(12)])
    image.save(tmp_path / "a.tif")
    assert read_video(tmp_path).rgb.unique(dim=1).unique(dim=2).flatten().tolist() == list(seen)
