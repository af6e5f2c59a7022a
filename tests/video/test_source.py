"""Pipes, standard input, bytes and streams are read as the file that they hold."""

from __future__ import annotations

import gc
import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.video.common import numbers, picture, pictures
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video, write_video

NAMES = [
    "clip.mp4",
    "clip.mkv",
    "clip.ts",
    "moving.gif",
    "still.png",
    "still.jp2",
    "a.npy",
    "a.npz",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind; each begins with picture 0."""
    folder = tmp_path_factory.mktemp("files")
    for name in NAMES[:3]:
        write_video(folder / name, pictures(5))
    first, *others = (Image.fromarray(frame) for frame in pictures(5))
    first.save(folder / "moving.gif", save_all=True, append_images=others, duration=100)
    first.save(folder / "still.png")
    first.save(folder / "still.jp2", irreversible=False)
    frames = np.stack(list(pictures(5)))
    np.save(folder / "a.npy", frames)
    np.savez(folder / "a.npz", frames=frames)
    return folder


def check(source: object, path: Path) -> None:
    """The source gives the frames and the times of the file at `path`."""
    want, video = open_video(path), open_video(source)
    assert video.seconds.tolist() == want.seconds.tolist()
    assert (video.fps, video.duration, video.size) == (want.fps, want.duration, want.size)
    seen = numbers(video.frames(range(video.num_frames), 2))
    assert seen == list(range(len(seen))) == list(range(want.num_frames))
    # once more, from the same object
    assert numbers(video.frames([0])) == [0]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_the_file_that_they_hold(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data)):
        check(source, folder / name)


def test_a_stream_is_read_from_its_start_and_may_be_closed(folder: Path) -> None:
    path = folder / "clip.mp4"
    with path.open("rb") as stream:
        stream.seek(100)
        video = open_video(stream)
    assert video.name == str(path)
    assert numbers(video.frames(range(5))) == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("name", NAMES)
def test_a_named_pipe_is_the_file_that_comes_through(
    folder: Path, tmp_path: Path, name: str
) -> None:
    pipe, data = tmp_path / "pipe", (folder / name).read_bytes()
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True)
    writer.start()
    check(pipe, folder / name)
    writer.join()


CODE = "from timeviper_fast.video import open_video; print(open_video({!r}).num_frames)"


def count_from(name: str, **stdin: object) -> int:
    """The frames that another process finds under `name`."""
    command = [sys.executable, "-c", CODE.format(name)]
    return int(subprocess.run(command, capture_output=True, check=True, **stdin).stdout)


def test_standard_input_behind_a_pipe(folder: Path) -> None:
    assert count_from("-", input=(folder / "clip.mkv").read_bytes()) == 5


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="the system has no such name")
def test_standard_input_that_is_a_socket(folder: Path) -> None:
    """Some programs give those they start a socket, which has no name to open."""
    here, there = socket.socketpair()
    data = (folder / "clip.mkv").read_bytes()
    writer = threading.Thread(target=lambda: (here.sendall(data), here.close()), daemon=True)
    writer.start()
    with there:
        assert count_from("/dev/stdin", stdin=there) == 5
    writer.join()


def test_standard_input_that_is_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "clip.mp4").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        check("-", folder / "clip.mp4")


def test_a_dash_is_a_file_if_it_is_given_as_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes((folder / "clip.mp4").read_bytes())
    for source in ("./-", Path("-"), tmp_path / "-"):
        assert open_video(source).num_frames == 5


def test_standard_input_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(VideoError, match=r"^standard input: it is closed$"):
        open_video("-")
    terminal = io.BytesIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(terminal)))
    with pytest.raises(VideoError, match=r"^standard input: it is a terminal; pipe a video"):
        open_video("-")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "bytes: the file is empty"),
        (b"video.mp4", "bytes: it cannot be opened as a video"),
        (io.BytesIO(b"\x93NUMPY"), "stream: it cannot be read as a NumPy file"),
    ],
)
def test_what_holds_no_video_is_named(source: object, words: str) -> None:
    with pytest.raises(VideoError, match=f"^{words}") as refusal:
        open_video(source)
    assert tempfile.gettempdir() not in str(refusal.value)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="the system has no such name")
def test_a_device_is_refused() -> None:
    with pytest.raises(VideoError, match=r"^/dev/null: it is a device, not a file or a pipe"):
        open_video("/dev/null")


def test_a_stream_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    path = folder / "clip.mp4"
    with path.open("rb") as closed:
        pass
    memory = io.BytesIO(path.read_bytes())
    memory.close()
    for stream, name in ((closed, str(path)), (memory, "stream")):
        rule = f"open_video: source must be an open stream, got the closed {name}"
        with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
            open_video(stream)
    target = (tmp_path / "new").open("wb")
    with target, pytest.raises(ValueError, match="source must be a stream to read"):
        open_video(target)


def test_standard_input_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"..."))
    monkeypatch.setattr(sys, "stdin", stream)
    stream.buffer.close()
    with pytest.raises(VideoError, match=r"^standard input: it is closed$"):
        open_video("-")


def test_text_is_no_stream_of_bytes() -> None:
    with pytest.raises(ValueError, match=r"source must be a stream of bytes .*, got StringIO"):
        open_video(io.StringIO("video"))


def test_the_copy_vanishes_with_the_video(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    video = open_video((folder / "clip.mp4").read_bytes())
    assert len(list(tmp_path.iterdir())) == 1
    assert numbers(video.frames([3])) == [3]
    del video
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(VideoError, match="cannot be opened"):
        open_video(b"nothing of a video")
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_frames_of_any_kind() -> None:
    frames = [picture(0), Image.fromarray(picture(1)), torch.tensor(picture(2))]
    video = open_video(frames, fps=2)
    assert video.seconds.tolist() == [0, 0.5, 1]
    assert numbers(video.frames([0, 1, 2])) == [0, 1, 2]
    assert numbers(open_video(tuple(frames)).frames([2])) == [2]
