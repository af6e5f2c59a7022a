"""Every frame that is asked for, and no other: files written here carry their frame's number.

The number stands in the picture as 16 black or white blocks, which survive compression.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.video.common import (
    HEIGHT,
    WIDTH,
    av,
    damage,
    number_of,
    numbers,
    picture,
    pictures,
    sound_only,
)
from timeviper_fast.errors import VideoError
from timeviper_fast.video import decode, open_video, read_video, write_video
from timeviper_fast.video.file import FileReader


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
    original = decode.decoded

    def counting(*args: object) -> Iterator[object]:
        for one in original(*args):  # type: ignore[arg-type]
            seen.append(1)
            yield one

    monkeypatch.setattr(decode, "decoded", counting)
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
    feed = decode.Feed
    original = feed._seek

    def late(self: decode.Feed, number: int) -> None:
        original(self, min(number + 60, 1170))

    def lost(self: decode.Feed, number: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(feed, "_landed", lambda *_: None)
            original(self, number)

    def refused(self: decode.Feed, number: int) -> None:
        def seek(*args: object, **options: object) -> None:
            raise av.error.PermissionError(1, "not permitted")

        self.container = type("Pipe", (), {"seek": seek, "demux": self.container.demux})()
        original(self, number)

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


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_reader_holds_few_bytes_a_frame(tmp_path: Path, suffix: str) -> None:
    """Of two lengths, so that what does not grow with the frames cancels out."""
    held = []
    for frames in (500, 3000):
        path = tmp_path / f"{frames}.{suffix}"
        black = (np.zeros((16, 16, 3), np.uint8) for _ in range(frames))
        write_video(path, black, 25, options={"bf": "2"})
        FileReader(path)
        gc.collect()
        tracemalloc.start()
        reader = FileReader(path)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(reader.seconds) == frames
    assert held[1] - held[0] <= 40 * 2500


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
    for source in (None, 3, {"frames": picture(0)}, iter([picture(0)])):
        words = (
            "source must be a path, bytes, a binary stream, an array, a tensor or a list of frames"
        )
        words += f", got {type(source).__name__}"
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


def test_a_scan_shows_its_progress(folder: Path) -> None:
    path = folder / "stream.ts"
    seen: list[tuple[str, int, int]] = []
    open_video(path, progress=lambda *step: seen.append(step))
    size = path.stat().st_size
    assert {(what, total) for what, _, total in seen} == {("scan", size)}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("scan", size, size)
    with pytest.raises(ValueError, match="progress must be a function or None, got 3"):
        open_video(path, progress=3)  # type: ignore[arg-type]
