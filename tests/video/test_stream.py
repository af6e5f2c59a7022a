"""A video that is read while it is written gives what the finished one gives."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.video.common import av, number_of, picture, pictures
from timeviper_fast.errors import VideoError
from timeviper_fast.video import Frames, open_stream, open_video, write_video
from timeviper_fast.video.ahead import read_ahead

# 3.6 s of 25 frames per second
COUNT = 90
B_FRAMES = {"bf": "3", "g": "12"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def fragmented(path: Path) -> None:
    """An mp4 file as recorders write it that may stop at any time."""
    with av.open(str(path), "w", options=FRAGMENTS) as container:
        stream = container.add_stream("libx264", rate=25, options=B_FRAMES)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = picture(0).shape[:2]
        for number, rgb in enumerate(pictures(COUNT)):
            shown = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            shown.pts = number
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))


UNEVEN = [i / 25 + (0.013 if i % 3 else 0) + (2 if i > 40 else 0) for i in range(COUNT)]
FILES: dict[str, Callable[[Path], None]] = {
    "stream.ts": lambda path: write_video(path, pictures(COUNT), 25, options=B_FRAMES),
    "uneven.mkv": lambda path: write_video(
        path, pictures(COUNT), 25, seconds=UNEVEN, options=B_FRAMES
    ),
    "vp9.webm": lambda path: write_video(
        path, pictures(COUNT), 25, codec="libvpx-vp9", options={"cpu-used": "8"}
    ),
    "open_gop.ts": lambda path: write_video(
        path, pictures(COUNT), 25, options={"x264-params": "open-gop=1:keyint=12:bframes=3"}
    ),
    "fragments.mp4": fragmented,
    "late.ts": lambda path: write_video(
        path, pictures(COUNT), 25, seconds=[i / 25 + 5 for i in range(COUNT)], options={"g": "12"}
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    for name, make in FILES.items():
        make(folder / name)
    return folder


def whole(path: Path, policy: str) -> Frames:
    with open_video(path) as video:
        batches = list(video.frames(video.sample(policy)))
    return Frames(torch.cat([b.rgb for b in batches]), torch.cat([b.seconds for b in batches]))


def write_slowly(data: bytes, path: Path, end: Callable[[], None], pieces: int = 40) -> None:
    size = -(-len(data) // pieces)
    with path.open("ab", buffering=0) as file:
        for at in range(0, len(data), size):
            file.write(data[at : at + size])
            time.sleep(0.003)
    end()


def watched(data: bytes, path: Path, policy: str = "fps:10", **options) -> tuple[list[Frames], ...]:
    """What comes while a thread writes the file."""
    path.unlink(missing_ok=True)
    path.touch()
    with open_stream(path, policy, quiet=None, poll=0.005, **options) as stream:
        writer = threading.Thread(target=write_slowly, args=(data, path, stream.end))
        writer.start()
        try:
            frames = list(stream)
        finally:
            stream.end()
            writer.join()
        return frames, stream


def joined(frames: list[Frames]) -> Frames:
    return Frames(torch.cat([f.rgb for f in frames]), torch.cat([f.seconds for f in frames]))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_written_gives_the_frames_of_the_finished_one(folder, tmp_path, name):
    data = (folder / name).read_bytes()
    for policy in ("fps:1", "fps:7", "fps:100"):
        frames, stream = watched(data, tmp_path / name, policy)
        truth, found = whole(folder / name, policy), joined(frames)
        assert found.seconds.tolist() == truth.seconds.tolist()
        assert torch.equal(found.rgb, truth.rgb)
        assert stream.notes == ()
        assert all(len(one.seconds) == 1 for one in frames)
    # the last policy chose all
    assert [number_of(rgb) for rgb in found.rgb] == list(range(COUNT))


def test_a_finished_file_is_read_too(folder, tmp_path):
    write_video(tmp_path / "whole.mp4", pictures(30), 25, options=B_FRAMES)
    with open_stream(tmp_path / "whole.mp4", "fps:100", quiet=None) as stream:
        assert [number_of(one.rgb[0]) for one in stream] == list(range(30))
    with open_stream(folder / "stream.ts", quiet=0.05, poll=0.01) as stream:
        assert (
            joined(list(stream)).seconds.tolist()
            == whole(folder / "stream.ts", "fps:1").seconds.tolist()
        )


def test_frames_come_while_the_file_is_written(folder, tmp_path):
    """All frames but those that the parser, the decoder and the threads hold back."""
    data, path = (folder / "stream.ts").read_bytes(), tmp_path / "stream.ts"
    path.write_bytes(data[: len(data) * 3 // 4])
    with open_stream(path, "fps:100", quiet=None, poll=0.01) as stream:
        early = [number_of(next(stream).rgb[0]) for _ in range(COUNT // 4)]
        assert early == list(range(COUNT // 4))
        with path.open("ab") as file:
            file.write(data[len(data) * 3 // 4 :])
        stream.end()
        assert [number_of(one.rgb[0]) for one in stream] == list(range(COUNT // 4, COUNT))


def test_a_stalled_file_ends_with_what_is_whole(folder, tmp_path):
    for name in ("stream.ts", "fragments.mp4", "uneven.mkv"):
        data, path = (folder / name).read_bytes(), tmp_path / name
        path.write_bytes(data[: len(data) * 2 // 3])
        with open_stream(path, "fps:100", quiet=0.05, poll=0.01) as stream:
            found = [number_of(one.rgb[0]) for one in stream]
        with open_video(path, on_error="use") as video:
            truth = [number_of(rgb) for b in video.frames(range(video.num_frames)) for rgb in b.rgb]
        # the finished file lacks the picture that is cut off, the stream shows what is left of it
        assert found[: len(truth)] == truth
        assert COUNT // 3 < len(truth) <= len(found) <= len(truth) + 1


def test_a_file_that_vanishes_or_shrinks(folder, tmp_path, monkeypatch):
    data = (folder / "stream.ts").read_bytes()
    path = tmp_path / "stream.ts"
    changes = (
        (path.unlink, "the file vanished while it was read"),
        (lambda: os.truncate(path, 10), "the file became shorter while it was read"),
    )
    for change, words in changes:
        path.write_bytes(data)
        with open_stream(path, "fps:100", quiet=None, poll=0.01) as stream:
            found = [number_of(next(stream).rgb[0]) for _ in range(5)]
            # when the reader waits, all that is written was read
            monkeypatch.setattr(stream._patience, "wait", change)
            with pytest.raises(VideoError, match=f"stream.ts: {words}"):
                found.extend(number_of(one.rgb[0]) for one in stream)
            # the frames before come first
            assert found == list(range(COUNT))


def test_damage_is_counted_and_said(folder, tmp_path):
    data = bytearray((folder / "stream.ts").read_bytes())
    # one transport packet of the middle is missing
    at = len(data) // 188 // 2 * 188
    del data[at : at + 188]
    frames, stream = watched(bytes(data), tmp_path / "stream.ts", "fps:100")
    found = [number_of(one.rgb[0]) for one in frames]
    with open_video(tmp_path / "stream.ts", on_error="use") as video:
        truth = [number_of(rgb) for b in video.frames(range(video.num_frames)) for rgb in b.rgb]
    assert set(found) <= set(range(COUNT))
    assert set(truth) - set(found) <= set(range(COUNT // 3, COUNT))
    assert stream.lost_frames > 0
    assert frames[-1].lost_frames == stream.lost_frames
    assert stream.notes[0].startswith(f"{stream.lost_frames} frame")


def test_a_recording_that_starts_between_key_frames(folder, tmp_path):
    """What is shown before the first key frame is lost, as in the finished file."""
    with av.open(str(folder / "stream.ts")) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    data = (folder / "stream.ts").read_bytes()
    head = data[: 3 * 188]
    frames, stream = watched(head + data[places[5] :], tmp_path / "cut.ts", "fps:100")
    with open_video(tmp_path / "cut.ts", on_error="use") as video:
        truth = [number_of(rgb) for b in video.frames(range(video.num_frames)) for rgb in b.rgb]
    assert [number_of(one.rgb[0]) for one in frames] == truth
    assert stream.lost_frames >= 1


def test_a_clock_that_starts_anew(folder, tmp_path):
    data = (folder / "stream.ts").read_bytes()
    frames, stream = watched(data + data, tmp_path / "twice.ts", "fps:100")
    found = joined(frames)
    # The counters of the transport stream break there, so its last picture may be damaged.
    assert [number_of(rgb) for rgb in found.rgb] == [*range(COUNT - 1), *range(COUNT)]
    torch.testing.assert_close(found.seconds.diff(), torch.full((2 * COUNT - 2,), 0.04).double())
    assert stream.lost_frames == 1
    assert stream.notes[1:] == (
        "the time stamps start anew in 1 place; each part follows the one before",
    )


def test_a_plain_mp4_that_is_not_whole_is_refused(folder, tmp_path):
    write_video(tmp_path / "whole.mp4", pictures(30), 25)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "part.mp4").write_bytes(data[: len(data) // 2])
    stream = open_stream(tmp_path / "part.mp4")
    with pytest.raises(VideoError, match=r"part.mp4: it is an mp4 or mov file whose index .* ends"):
        next(stream)


def test_what_is_no_stream(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rtsp://a/b: no such file .* are live sources"):
        open_stream("rtsp://a/b")
    with pytest.raises(ValueError, match="policy must be fps:RATE for a stream"):
        open_stream(tmp_path, "uniform:8")
    for name, wrong, rule in (
        ("quiet", 0, "be a finite number above 0, or None, got 0"),
        ("fps", "1", "be a finite number above 0, or None, got '1'"),
        ("poll", -1, "be a finite number of 0 or more, got -1"),
    ):
        with pytest.raises(ValueError, match=f"^open_stream: {name} must {rule}$"):
            open_stream(tmp_path, **{name: wrong})
    with pytest.raises(ValueError, match="format and options must be left out but for live"):
        open_stream(tmp_path, format="v4l2")
    (tmp_path / "text.ts").write_text("no video\n" * 500)
    with pytest.raises(VideoError, match=r"text.ts: it cannot be opened as a video"):
        next(open_stream(tmp_path / "text.ts", quiet=0.03, poll=0.01))


def test_closing_ends_it_from_here_and_from_another_thread(folder, tmp_path):
    path = tmp_path / "stream.ts"
    path.write_bytes((folder / "stream.ts").read_bytes())
    with open_stream(path, "fps:100", quiet=None, poll=0.01) as stream:
        next(stream)
    assert list(stream) == []
    stream = open_stream(path, "fps:100", quiet=None, poll=10)
    ahead = read_ahead(lambda _: stream, 1000)
    next(ahead)
    # it waits for the file to grow by now, or soon
    time.sleep(0.05)
    started = time.monotonic()
    stream.close()
    list(ahead)
    assert time.monotonic() - started < 5
    if (open_files := Path("/proc/self/fd")).is_dir():
        assert str(path) not in [os.path.realpath(file) for file in open_files.iterdir()]


def test_a_live_source_is_what_pyav_opens(folder):
    source = "testsrc=rate=10:size=64x48:duration=3"
    with open_stream(source, "fps:2", live=True, format="lavfi") as stream:
        assert joined(list(stream)).seconds.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    name = str(folder / "stream.ts")
    with open_stream(name, "fps:1", live=True, options={"fflags": "nobuffer"}) as stream:
        assert joined(list(stream)).seconds.tolist() == whole(Path(name), "fps:1").seconds.tolist()
    with open_stream(name, live=True) as stream:
        next(stream)
        stream.end()
        assert len(list(stream)) <= 1
    with pytest.raises(VideoError, match="no-such-device: PyAV cannot open it"):
        next(open_stream("no-such-device", live=True))
