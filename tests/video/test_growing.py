"""A file that is being written is read to its end, and its end is noticed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from timeviper_fast.errors import VideoError
from timeviper_fast.video.growing import Patience, growing_file


def box(kind: str, content: bytes = b"") -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind.encode() + content


def everything(path: Path, patience: Patience) -> tuple[bytes, str]:
    data = b""
    with growing_file(path, patience) as file:
        while piece := file.read(7):
            data += piece
        return data, file.fault


def test_all_that_is_written_is_read(tmp_path):
    path, patience = tmp_path / "a.ts", Patience(None, 0.005)
    path.touch()
    pieces = [bytes([i]) * (1 + 5 * i % 23) for i in range(40)]

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
                time.sleep(0.002)
        patience.end()

    writer = threading.Thread(target=write)
    writer.start()
    assert everything(path, patience) == (b"".join(pieces), "")
    writer.join()


def test_what_was_written_before_the_end_was_told_is_read(tmp_path):
    path, patience = tmp_path / "a.ts", Patience(None, 0.005)
    path.write_bytes(bytes(100))
    patience.end()
    assert everything(path, patience) == (bytes(100), "")


def test_a_quiet_file_ends_but_a_slow_reader_does_not_end_it(tmp_path, monkeypatch):
    path, patience = tmp_path / "a.ts", Patience(0.08, 0.01)
    path.write_bytes(b"x" * 10)
    with growing_file(path, patience) as file:
        assert file.read(10) == b"x" * 10
        time.sleep(0.1)
        # written while the reader waits for more
        monkeypatch.setattr(patience, "wait", lambda: path.write_bytes(b"x" * 10 + b"y"))
        assert file.read(10) == b"y"
        monkeypatch.undo()
        started = time.monotonic()
        assert file.read(10) == b""
        assert 0.08 <= time.monotonic() - started < 2


def test_waiting_takes_no_processor(tmp_path):
    path, patience = tmp_path / "a.ts", Patience(0.4, 0.05)
    path.write_bytes(b"x" * 10)
    used = time.thread_time()
    everything(path, patience)
    assert time.thread_time() - used < 0.1


def test_files_that_go_away(tmp_path):
    path = tmp_path / "a.ts"

    def fault(change) -> str:
        path.write_bytes(bytes(100))
        with growing_file(path, Patience(None, 0.01)) as file:
            assert file.read(100) == bytes(100)
            change()
            assert file.read(1) == b""
            return file.fault

    assert fault(path.unlink) == "the file vanished while it was read"
    assert fault(lambda: os.truncate(path, 50)) == "the file became shorter while it was read"
    other = tmp_path / "b.ts"
    other.write_bytes(bytes(500))
    words = "another file took its place while it was read"
    assert fault(lambda: other.replace(path)) == words


def test_an_index_behind_the_frames_must_be_there(tmp_path):
    path = tmp_path / "a.mp4"
    start = box("ftyp", b"isom")
    path.write_bytes(start + box("mdat", bytes(50)))
    with pytest.raises(VideoError, match=r"index is written when the recording ends; wait .* mkv"):
        everything(path, Patience(None, 0.01))
    # whole, with the index behind the frames: there is nothing to wait for
    whole = start + box("mdat", bytes(50)) + box("moov", bytes(9))
    path.write_bytes(whole)
    with growing_file(path, Patience(None, 0.01)) as file:
        assert file.seek(-1, os.SEEK_END) == len(whole) - 1  # type: ignore[attr-defined]
        assert (file.read(9), file.read(9)) == (b"\0", b"")
    # the index in front comes late
    path.write_bytes(start[:5])
    patience = Patience(None, 0.005)
    pieces = [start[5:], box("moov", bytes(30))[:20], box("moov", bytes(30))[20:], bytes(4)]

    def write() -> None:
        for piece in pieces:
            time.sleep(0.01)
            with path.open("ab") as file:
                file.write(piece)
        patience.end()

    writer = threading.Thread(target=write)
    writer.start()
    assert everything(path, patience)[0] == start[:5] + b"".join(pieces)
    writer.join()


def test_a_file_that_stays_empty(tmp_path):
    path = tmp_path / "a.ts"
    path.touch()
    with pytest.raises(VideoError, match=r"a.ts: the file is empty"):
        everything(path, Patience(0.03, 0.01))
    path.write_bytes(box("ftyp"))
    with pytest.raises(VideoError, match=r"a.ts: it is not whole"):
        everything(path, Patience(0.03, 0.01))
