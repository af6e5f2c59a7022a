"""Every frame that is asked for, and no other: files written here carry their frame's number.

The number stands in the picture as 16 black or white blocks, which survive compression.
"""

from __future__ import annotations

import os
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base

from timeviper_fast.errors import VideoError
from timeviper_fast.video import Frames, open_video, read_video, write_video
from timeviper_fast.video import file as video_file

av = pytest.importorskip("av")

HEIGHT, WIDTH = 48, 64


def picture(number: int) -> np.ndarray:
    bits = (number >> np.arange(16)) & 1
    blocks = np.where(bits, 225, 30).astype(np.uint8).reshape(4, 4)
    grey = np.kron(blocks, np.ones((HEIGHT // 4, WIDTH // 4), np.uint8))
    return np.repeat(grey[..., None], 3, axis=-1)


def number_of(rgb: torch.Tensor) -> int:
    blocks = rgb.double().mean(-1).view(4, HEIGHT // 4, 4, WIDTH // 4)[:, 4:-4, :, 4:-4]
    bits = blocks.mean((1, 3)).flatten() > 127
    return int((bits * 2 ** torch.arange(16)).sum())


def numbers(batches: Iterator[Frames]) -> list[int]:
    return [number_of(frame) for frames in batches for frame in frames.rgb]


def pictures(count: int) -> Iterator[np.ndarray]:
    return (picture(number) for number in range(count))


def uneven(count: int) -> list[float]:
    """Times in whole milliseconds, which every container used here can state."""
    steps = np.random.default_rng(0).integers(10, 200, count)
    return (np.cumsum(steps) / 1000).tolist()


B_FRAMES = {"bf": "3", "g": "12"}
FILES: dict[str, dict] = {
    "constant.mp4": {"options": B_FRAMES},
    "variable.mp4": {"options": B_FRAMES, "seconds": uneven(60)},
    "variable.mkv": {"options": B_FRAMES, "seconds": uneven(60)},
    "late.mp4": {"options": B_FRAMES, "seconds": [5 + i / 25 for i in range(60)]},
    "stream.ts": {"options": B_FRAMES},
    "long_gop.mp4": {"options": {"g": "1000", "bf": "2"}},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
    "all_key.mp4": {"options": {"g": "1"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "b_frames.avi": {"options": B_FRAMES},
    "raw.h264": {"options": B_FRAMES},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, how in FILES.items():
        write_video(folder / name, pictures(60), 25, **how)
    write_video(folder / "long.mp4", pictures(1200), 30, options={"g": "30", "preset": "ultrafast"})
    return folder


@pytest.mark.parametrize("name", FILES)
def test_any_frames_of_any_file_are_exact(folder: Path, name: str) -> None:
    choices = [list(range(60)), [0], [59], [37], [3, 4, 41], [11, 12, 13, 25], [5, 5, 5, 58, 58]]
    choices += [sorted(np.random.default_rng(i).choice(60, 8, replace=False)) for i in range(4)]
    with open_video(folder / name) as video:
        assert video.num_frames == 60
        assert video.lost_frames == 0
        assert video.size == (HEIGHT, WIDTH)
        for chosen in choices:
            assert numbers(video.frames(chosen, batch_size=5)) == list(chosen)


@pytest.mark.parametrize("name", [name for name, how in FILES.items() if "seconds" in how])
def test_seconds_are_the_times_that_were_written(folder: Path, name: str) -> None:
    truth = torch.tensor(FILES[name]["seconds"], dtype=torch.float64)
    video = open_video(folder / name)
    torch.testing.assert_close(video.seconds, truth, atol=1e-4, rtol=0)
    assert video.fps == pytest.approx(60 / video.duration, rel=0.01)
    frames = read_video(folder / name, "uniform:7")
    chosen = [number_of(frame) for frame in frames.rgb]
    torch.testing.assert_close(frames.seconds, truth[chosen], atol=1e-4, rtol=0)


def test_a_variable_rate_file_is_sampled_by_time(folder: Path) -> None:
    times = np.array(FILES["variable.mp4"]["seconds"])
    frames = read_video(folder / "variable.mp4", "fps:2")
    instants = np.arange(times[0], times[-1], 0.5)
    nearest = [int(np.abs(times - instant).argmin()) for instant in instants]
    assert [number_of(frame) for frame in frames.rgb][: len(nearest)] == nearest


def test_constant_rate_timeline(folder: Path) -> None:
    video = open_video(folder / "constant.mp4")
    torch.testing.assert_close(video.seconds, torch.arange(60, dtype=torch.float64) / 25)
    assert (video.fps, video.duration) == (25.0, pytest.approx(2.4))
    assert numbers(video.frames(video.sample("fps:5"))) == list(range(0, 60, 5))
    assert open_video(folder / "raw.h264").seconds[-1] == pytest.approx(59 / 25)
    # one of the rates that are no whole number
    write_video(folder / "ntsc.mp4", pictures(61), Fraction(30000, 1001))
    assert open_video(folder / "ntsc.mp4").fps == pytest.approx(30000 / 1001, rel=1e-12)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the pictures that decoders give."""
    seen: list[int] = []
    original = video_file._decoded

    def counting(*args: object) -> Iterator[object]:
        for one in original(*args):  # type: ignore[arg-type]
            seen.append(1)
            yield one

    monkeypatch.setattr(video_file, "_decoded", counting)
    return seen


def test_few_frames_of_a_long_file_decode_few_frames(folder: Path, decoded: list[int]) -> None:
    video = open_video(folder / "long.mp4")
    decoded.clear()
    chosen = [7, 8, 600, 1199]
    assert numbers(video.frames(chosen)) == chosen
    assert len(decoded) <= 9 + 1 + 30 + 3 * 4
    decoded.clear()
    # one frame per second: each second of this file starts with a key frame
    assert numbers(video.frames(video.sample("fps:1"))) == list(range(0, 1200, 30))
    assert len(decoded) <= 3 * 40


@pytest.mark.parametrize("fault", ["late", "lost", "refused"])
def test_a_seek_that_goes_astray_costs_time_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    feed = video_file._Feed
    original = feed._seek

    def late(self: video_file._Feed, number: int) -> bool:
        return original(self, min(number + 60, 1170))

    def lost(self: video_file._Feed, number: int) -> bool:
        known, self.index.number_of = self.index.number_of, {}
        try:
            return original(self, number)
        finally:
            self.index.number_of = known

    def refused(self: video_file._Feed, number: int) -> bool:
        def seek(*args: object, **options: object) -> None:
            raise av.error.PermissionError(1, "not permitted")

        self.container = type("Pipe", (), {"seek": seek, "demux": self.container.demux})()
        return original(self, number)

    monkeypatch.setattr(feed, "_seek", {"late": late, "lost": lost, "refused": refused}[fault])
    chosen = [7, 400, 401, 1000]
    assert numbers(open_video(folder / "long.mp4").frames(chosen)) == chosen


def test_rotation_and_edit_list_are_applied(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "constant.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    # x' = -y, y' = x: a quarter turn to the right, as phones held upright write it
    for place, value in enumerate([0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]):
        data[matrix + 4 * place : matrix + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    video = open_video(turned)
    assert video.size == (WIDTH, HEIGHT)
    (frames,) = video.frames([37])
    upright = frames.rgb[0].flip(1).transpose(0, 1)
    assert number_of(upright) == 37

    # frames before time 0 are cut by an edit list: stored, never shown
    cut = tmp_path / "cut.mp4"
    write_video(cut, pictures(60), seconds=[(i - 7) / 25 for i in range(60)], options=B_FRAMES)
    video = open_video(cut)
    assert numbers(video.frames(range(video.num_frames))) == list(range(7, 60))
    assert video.lost_frames == 0


@pytest.mark.parametrize(
    ("matrix", "kr", "kb"), [("bt709", 0.2126, 0.0722), ("smpte170m", 0.299, 0.114)]
)
def test_colours_follow_the_matrix_that_the_file_states(
    tmp_path: Path, matrix: str, kr: float, kb: float
) -> None:
    path = tmp_path / "colour.mp4"
    luma, cb, cr = 120, 100, 150
    with av.open(str(path), "w") as container:
        options = {"x264-params": f"colormatrix={matrix}", "crf": "1"}
        stream = container.add_stream("libx264", rate=1, options=options)
        stream.height = stream.width = 32
        frame = av.VideoFrame(32, 32, "yuv420p")
        for plane, value in zip(frame.planes, (luma, cb, cr)):
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    y, u, v = (luma - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    expected = torch.tensor([red, green, blue]) * 255
    actual = read_video(path).rgb[0].float().mean((0, 1))
    torch.testing.assert_close(actual, expected, atol=2.5, rtol=0)


def test_an_hour_streams_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "hour.mp4"
    write_video(path, pictures(3600), 1, options={"preset": "ultrafast"})
    video = open_video(path)
    assert (video.num_frames, video.fps, video.duration) == (3600, 1.0, 3600.0)
    chosen = video.sample("fps:1")
    assert len(chosen) == 3600
    tracemalloc.start()
    try:
        seconds = []
        for frames in video.frames(chosen, batch_size=32):
            seconds += frames.seconds.tolist()
            assert number_of(frames.rgb[0]) == seconds[-len(frames.rgb)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds == list(range(3600))
    assert peak < 3600 * HEIGHT * WIDTH * 3 / 16


def damage(path: Path, target: Path, packet: int) -> Path:
    """A copy of an mp4 file with the payload of one packet overwritten."""
    with av.open(str(path)) as container:
        found = [p for p in container.demux(container.streams.video[0]) if p.size][packet]
        start, size = found.pos, found.size
    data = bytearray(path.read_bytes())
    data[start + 5 : start + size] = bytes(size - 5)
    target.write_bytes(data)
    return target


def test_damage_is_refused_or_counted(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    write_video(source, pictures(60), 25, options={"g": "12", "bf": "0"})
    path = damage(source, tmp_path / "damaged.mp4", 30)
    with open_video(path) as video, pytest.raises(VideoError) as refusal:
        list(video.frames(range(60)))
    words = str(refusal.value)
    assert words.startswith(f"{path}: frame 30 at 1.200 s cannot be decoded")
    assert words.endswith("on_error='use' takes what can be decoded")
    assert "\n" not in words
    with open_video(path, on_error="use") as video:
        # what follows the damaged frame up to the next key frame may show the damage
        usable = [i for i in range(60) if not 30 <= i < 36]
        batches = list(video.frames(range(60), 7))
        assert numbers(iter(batches)) == usable
        seconds = torch.cat([frames.seconds for frames in batches])
        torch.testing.assert_close(seconds, torch.tensor(usable, dtype=torch.float64) / 25)
        assert video.lost_frames == batches[-1].lost_frames == 6
        # asking again does not count them again
        assert numbers(video.frames([29, 30, 36])) == [29, 36]
        assert video.lost_frames == 6
        with pytest.raises(VideoError, match="none of the 2 frames can be decoded"):
            list(video.frames([31, 33]))
    # frames that the damage cannot reach need no permission
    assert numbers(open_video(path).frames([2, 20, 40])) == [2, 20, 40]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_truncated_file_is_refused_or_counted(tmp_path: Path, suffix: str) -> None:
    source, path = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    codec = "mpeg4" if suffix == "avi" else "libx264"
    write_video(source, pictures(200), 25, codec=codec, options={"g": "12"})
    if suffix == "mp4":
        source = index_first(source, tmp_path / "index_first.mp4")
    data = source.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(VideoError, match=r"cut.*: it ends early: \d+ of its frames are missing"):
        open_video(path)
    video = open_video(path, on_error="use")
    assert 30 < video.num_frames < 180
    assert video.lost_frames == pytest.approx(200 - video.num_frames, abs=8)
    # the last packets' frames may overtake ones that are gone: their times still tell which
    batches = list(video.frames(range(video.num_frames)))
    seen = torch.cat([frames.seconds for frames in batches]) * 25
    assert numbers(iter(batches)) == seen.round().long().tolist()
    assert read_video(path, "uniform:9", on_error="use").lost_frames == video.lost_frames


def index_first(source: Path, target: Path) -> Path:
    """The same packets in an mp4 file whose index comes before them, as made for the web."""
    with (
        av.open(str(source)) as old,
        av.open(str(target), "w", options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return target


def test_a_recording_cut_before_its_first_key_frame(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.ts"
    with av.open(str(folder / "stream.ts")) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [p for p in old.demux(old.streams.video[0]) if p.size]
        for packet in packets[5:]:
            packet.stream = stream
            new.mux(packet)
    video = open_video(path)
    assert numbers(video.frames(range(video.num_frames))) == list(range(12, 60))
    assert video.lost_frames == 60 - 48 - 5


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        sound.sample_rate = 16_000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def unfinished(path: Path, index_bytes: int) -> None:
    """The index of such a file is its last box; so much of it was written."""
    write_video(path, pictures(30), 25)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov") - 4 + index_bytes])


def all_zero(path: Path) -> None:
    write_video(path, pictures(3), 25, options={"g": "1"})
    for packet in range(3):
        damage(path, path, packet)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("empty.mp4", lambda p: p.write_bytes(b""), "the file is empty"),
        ("noise.mp4", lambda p: p.write_bytes(b"\x07" * 5000), "it cannot be opened as a video"),
        (
            "notes.txt",
            lambda p: p.write_text("a line of text\n" * 200),
            "it is a text file, not a video",
        ),
        ("code.py", lambda p: p.write_text("import this\n"), "it cannot be opened as a video"),
        ("sound.m4a", sound_only, r"it has no video stream \(it holds audio\)"),
        ("no_index.mp4", lambda p: unfinished(p, 0), "was probably cut off"),
        ("half_an_index.mp4", lambda p: unfinished(p, 8), "was probably cut off"),
        ("zero.mp4", all_zero, "no frame of it can be decoded"),
        ("folder", lambda p: p.mkdir(), "the directory holds no images"),
        ("bad.npy", lambda p: p.write_bytes(b"\x93NUMPY"), "it cannot be read as a NumPy file"),
        ("bad.npz", lambda p: p.write_bytes(b"PK\x03\x04no"), "it cannot be read as a NumPy file"),
        ("bad.png", lambda p: p.write_bytes(b"\x89PNG"), "no image of it can be decoded"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "use"])
def test_what_is_no_video_ends_in_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], object], words: str, on_error: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(VideoError, match=words) as refusal:
        open_video(path, on_error=on_error)
    assert str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)


def test_a_wrong_path_and_wrong_arguments(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.mp4: no such file or directory"):
        open_video(folder / "nowhere.mp4")
    clip = folder / "constant.mp4"
    with pytest.raises(ValueError, match=r"fps must be left out for a video file .* got 2"):
        open_video(clip, fps=2)
    for fps in (-1, 0, float("nan"), "2", True):
        words = f"fps must be a finite number above 0, got {fps!r}"
        with pytest.raises(ValueError, match=words):
            open_video(clip, fps=fps)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_error must be one of raise, use, got 'skip'"):
        open_video(clip, on_error="skip")
    with pytest.raises(ValueError, match="source must not be empty"):
        open_video("")
    for source in (None, 3, [picture(0)], b"video.mp4"):
        words = f"source must be a path, a tensor or an array, got {type(source).__name__}"
        with pytest.raises(ValueError, match=words):
            open_video(source)  # type: ignore[arg-type]
    video = open_video(clip)
    for size in (0, 1.5, None, True):
        words = f"batch_size must be an integer above 0, got {size}"
        with pytest.raises(ValueError, match=words):
            video.frames([0], size)  # type: ignore[arg-type]
    for indices in ([0.5], [True], [[1]], 5, None, "ab"):
        words = f"indices must be a list of integers, got {re.escape(repr(indices))}"
        with pytest.raises(ValueError, match=words):
            video.frames(indices)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"indices must be a list of integers, got \[0.5\]"):
        video.frames(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="indices must ascend"):
        video.frames([3, 1])
    with pytest.raises(ValueError, match=r"indices must lie in 0 .. 59, got 58 .. 60"):
        video.frames([58, 60])
    assert list(video.frames([])) == []


def test_missing_packages_say_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "1.png")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "av", None)
        with pytest.raises(VideoError, match=r'av \(PyAV\); pip install "timeviper-fast\[video\]"'):
            open_video(folder / "constant.mp4")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "PIL", None)
        with pytest.raises(VideoError, match=r'pillow; pip install "timeviper-fast\[vision\]"'):
            open_video(tmp_path)


def open_handles(path: Path) -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(link) == str(path.resolve()) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in Linux's /proc")
def test_the_file_is_closed_however_reading_ends(folder: Path) -> None:
    path = folder / "constant.mp4"
    video = open_video(path)
    assert open_handles(path) == 0

    def interrupted() -> None:
        with video:
            for _ in video.frames(range(60), 4):
                assert open_handles(path) == 1
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert open_handles(path) == 0
    sound_only(folder / "sound.m4a")
    with pytest.raises(VideoError, match="no video"):
        open_video(folder / "sound.m4a")
    assert open_handles(folder / "sound.m4a") == 0


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
    """A TIFF of several pages, or a photograph with a second view in it: the first one counts."""
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


def test_arrays_tensors_and_their_files(tmp_path: Path) -> None:
    array = np.stack([picture(i) for i in range(9)])
    np.save(tmp_path / "a.npy", array)
    seconds = np.array([0.0, 0.1, 0.5, 1, 1.1, 3, 4, 4.5, 9])
    np.savez(tmp_path / "a.npz", frames=array, seconds=seconds)
    np.savez(tmp_path / "plain.npz", frames=array)
    for source in (array, torch.tensor(array), tmp_path / "a.npy", tmp_path / "plain.npz"):
        video = open_video(source, fps=4)
        assert numbers(video.frames([0, 3, 8])) == [0, 3, 8]
        assert video.seconds[-1] == 2
        assert video.duration == 2.25
    video = open_video(tmp_path / "a.npz")
    assert video.seconds.tolist() == seconds.tolist()
    assert video.sample("fps:1").tolist() == [0, 3, 4, 5, 6, 7, 8]
    assert read_video(array).rgb.dtype == torch.uint8


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pixels": np.zeros(3)}, "must hold an array named frames, got pixels"),
        ({}, "must hold an array named frames, got none"),
        (
            {"frames": np.zeros((2, 4, 4))},
            r"frames must be \(frames, height, width, 3\), got shape",
        ),
        ({"frames": np.zeros((0, 4, 4, 3), np.uint8)}, r"got shape \(0, 4, 4, 3\)"),
        ({"frames": np.zeros((2, 4, 4, 3))}, "frames must be of dtype uint8, got float64"),
        ({"seconds": np.zeros(3)}, r"seconds must have one time per frame \(2\), got \(3,\)"),
        ({"seconds": np.array(["0", "later"])}, "seconds must be numbers, got dtype <U5"),
        ({"seconds": np.array([0j, 1j])}, "seconds must be numbers, got dtype complex128"),
        ({"seconds": np.float64(1)}, r"seconds must have one time per frame \(2\), got \(\)"),
        ({"seconds": np.array([1.0, 1.0])}, "seconds must be finite and ascend"),
        ({"seconds": np.array([1.0, np.nan])}, "seconds must be finite and ascend"),
    ],
)
def test_arrays_are_refused_by_name(tmp_path: Path, arrays: dict, words: str) -> None:
    path = tmp_path / "video.npz"
    frames = {"frames": np.zeros((2, 4, 4, 3), np.uint8)} if "seconds" in arrays else {}
    np.savez(path, **frames, **arrays)
    with pytest.raises(VideoError, match=f"^{re.escape(str(path))}: .*{words}"):
        open_video(path)
    if frames:
        with pytest.raises(ValueError, match="fps must be left out where the file has seconds"):
            open_video(path, fps=1)


def test_write_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield from pictures(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", interrupted())
    odd = [np.zeros((33, 32, 3), np.uint8)]
    with pytest.raises(VideoError, match=r"one even height and width, got shape \(33, 32, 3\)"):
        write_video(tmp_path / "a.mp4", odd)
    changing = [picture(0), picture(0)[:8]]
    with pytest.raises(VideoError, match=r"one even height and width, got shape \(8, 64, 3\)"):
        write_video(tmp_path / "a.mp4", changing)
    with pytest.raises(VideoError, match="at least one frame, got none"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(VideoError, match=r"a.mp4: it cannot be written \(.*nonesuch"):
        write_video(tmp_path / "a.mp4", pictures(2), codec="nonesuch")
    with pytest.raises(VideoError, match=r"a.what: it cannot be written"):
        write_video(tmp_path / "a.what", pictures(2))
    assert list(tmp_path.iterdir()) == []
    write_video(tmp_path / "a.mp4", (torch.from_numpy(p) for p in pictures(5)), 10)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert open_video(tmp_path / "a.mp4").fps == 10
