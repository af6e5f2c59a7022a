"""A directory that fills gives the frames of the full one."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.video.common import number_of, picture
from timeviper_fast.errors import VideoError
from timeviper_fast.video import Frames, FrameStream, open_stream, open_video


def image(number: int, format: str = "PNG") -> bytes:
    memory = io.BytesIO()
    Image.fromarray(picture(number)).save(memory, format, quality=95)
    return memory.getvalue()


def opened(path: Path, **options) -> FrameStream:
    how = {"quiet": None, "poll": 0.005, "settle": 0.03} | options
    return open_stream(path, how.pop("policy", "fps:1"), **how)


def watched(path: Path, write, **options) -> tuple[Frames, FrameStream]:
    """What comes while a thread writes."""
    with opened(path, **options) as stream:
        writer = threading.Thread(target=lambda: (write(), stream.end()))
        writer.start()
        frames = list(stream)
        writer.join()
    return Frames(
        *(torch.cat(parts) for parts in zip(*((f.rgb, f.seconds) for f in frames)))
    ), stream


def whole(path: Path, policy: str = "fps:1", **options) -> Frames:
    with open_video(path, **options) as video:
        batches = list(video.frames(video.sample(policy)))
    return Frames(torch.cat([b.rgb for b in batches]), torch.cat([b.seconds for b in batches]))


@pytest.mark.parametrize("format", ["png", "jpg", "bmp"])
def test_files_that_are_half_written_and_out_of_order(tmp_path, format):
    kind = {"jpg": "JPEG"}.get(format, format.upper())

    def write() -> None:
        # each file is begun, then the one before it is finished: 1, 0, 3, 2, ... in halves
        for first in range(0, 12, 2):
            for number in (first + 1, first):
                data, path = image(number, kind), tmp_path / f"frame{number}.{format}"
                with path.open("wb", buffering=0) as file:
                    for at in range(0, len(data), -(-len(data) // 3)):
                        file.write(data[at : at + -(-len(data) // 3)])
                        time.sleep(0.004)
        (tmp_path / ".hidden.png").write_bytes(b"")
        (tmp_path / "notes.txt").write_text("no frame")

    for policy, fps in (("fps:1", 1.0), ("fps:2", 10.0)):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        # a writer that the system stops for less than a second is in order
        found, stream = watched(tmp_path, write, policy=policy, fps=fps, settle=1.0)
        truth = whole(tmp_path, policy, fps=fps)
        assert found.seconds.tolist() == truth.seconds.tolist()
        assert torch.equal(found.rgb, truth.rgb)
        assert stream.notes == ()


def test_a_half_written_file_holds_up_the_next_ones(tmp_path):
    data = image(0)
    (tmp_path / "0.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "1.png").write_bytes(image(1))
    (tmp_path / "2.png").write_bytes(image(2))
    stream = opened(tmp_path, settle=0.01)
    finished = threading.Event()

    def finish() -> None:
        finished.set()
        (tmp_path / "0.png").write_bytes(data)

    threading.Timer(0.15, finish).start()
    assert number_of(next(stream).rgb[0]) == 0
    assert finished.is_set()
    stream.end()
    assert [number_of(one.rgb[0]) for one in stream] == [1, 2]


def test_a_file_that_stays_broken_keeps_its_time(tmp_path):
    for number in range(5):
        data = image(number)
        (tmp_path / f"{number}.png").write_bytes(data[: len(data) // 2] if number == 2 else data)
    with opened(tmp_path, quiet=0.08) as stream:
        frames = list(stream)
    assert [number_of(one.rgb[0]) for one in frames] == [0, 1, 3, 4]
    assert [float(one.seconds) for one in frames] == [0, 1, 3, 4]
    assert stream.lost_frames == 1
    assert stream.notes[0].startswith("1 frame lost: damaged or not decodable (2.png: ")


def test_late_files_and_other_sizes_are_counted(tmp_path):
    for number in (0, 1, 5):
        (tmp_path / f"{number}.png").write_bytes(image(number))
    stream = opened(tmp_path, settle=0.0)
    # two are known to be chosen when three have come
    assert [number_of(next(stream).rgb[0]) for _ in range(2)] == [0, 1]
    (tmp_path / "4.png").write_bytes(image(4))
    Image.new("RGB", (20, 10)).save(tmp_path / "6.png")
    (tmp_path / "7.png").write_bytes(image(7))
    stream.end()
    assert [(number_of(one.rgb[0]), float(one.seconds)) for one in stream] == [(5, 2), (7, 4)]
    assert stream.lost_frames == 1
    assert stream.notes == (
        "1 frame lost: damaged or not decodable (6.png has another size)",
        "1 frame left out: files that arrived behind their place",
    )


def test_times_of_the_files(tmp_path):
    for number, second in enumerate((100.0, 100.25, 101.5, 103.0)):
        path = tmp_path / f"{number}.png"
        path.write_bytes(image(number))
        os.utime(path, (second, second))
    with opened(tmp_path, fps=None, policy="fps:100", quiet=0.05) as stream:
        assert [float(one.seconds) for one in stream] == [0.0, 0.25, 1.5, 3.0]


def test_a_directory_that_vanishes_or_stays_empty(tmp_path, monkeypatch):
    path = tmp_path / "camera"
    path.mkdir()
    with pytest.raises(VideoError, match="camera: no frame came"):
        next(opened(path, quiet=0.03))
    (path / "0.png").write_bytes(image(0))
    with opened(path, settle=0.0) as stream:
        # when the reader waits, it has taken what is there
        monkeypatch.setattr(stream._patience, "wait", lambda least: shutil.rmtree(path))
        # the frame that waited for the next one comes first
        assert number_of(next(stream).rgb[0]) == 0
        with pytest.raises(VideoError, match="camera: the directory vanished while it was read"):
            next(stream)
