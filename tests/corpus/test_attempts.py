"""Who works on what, over processes that end in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from timeviper_fast.corpus.attempts import Attempts, hashed


def dies_within(folder) -> None:
    """A process that is killed while it works on "a"."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from timeviper_fast.corpus.attempts import Attempts\n"
        "with Attempts(Path(sys.argv[1])).claim('a'): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, folder]).returncode == -signal.SIGKILL


def test_attempts_count_processes_that_ended(tmp_path):
    attempts = Attempts(tmp_path)
    with attempts.claim("a") as number:
        assert number == 1
    assert attempts.open() == 0
    for ended in range(2):
        dies_within(tmp_path)
        assert attempts.open() == 1
        with attempts.claim("b") as number:
            assert number == 1
        assert hashed(tmp_path, "a", ".attempts").stat().st_size == ended + 1
    with attempts.claim("a") as number:
        assert number == 3
    with attempts.claim("a") as number:
        assert number == 1


@pytest.mark.parametrize(
    ("error", "left"),
    [(KeyboardInterrupt, 0), (SystemExit, 0), (OSError, 0), (RuntimeError, 1), (MemoryError, 1)],
)
def test_errors_that_count_as_an_attempt(tmp_path, error, left):
    """An interrupt and a full disk are not the video's fault; an error nobody expects may be."""
    attempts = Attempts(tmp_path)
    with pytest.raises(error), attempts.claim("a"):
        raise error
    assert attempts.open() == left
    with attempts.claim("a") as number:
        assert number == left + 1


def test_a_key_that_is_worked_on_is_left_alone(tmp_path):
    one, other = Attempts(tmp_path), Attempts(tmp_path)
    with one.claim("a") as first, other.claim("a") as second, other.claim("b") as third:
        assert (first, second, third) == (1, None, 1)
    with other.claim("a") as again:
        assert again == 1


def test_a_mark_that_was_removed_meanwhile_is_no_claim(tmp_path, monkeypatch):
    """Between the opening of a mark and its lock another process may end its work."""
    attempts, path = Attempts(tmp_path), hashed(tmp_path, "a", ".attempts")
    fstat = os.fstat
    with attempts.claim("b"):
        pass

    def gone(number):
        path.unlink(missing_ok=True)
        return fstat(number)

    monkeypatch.setattr("timeviper_fast.corpus.attempts.os.fstat", gone)
    with attempts.claim("a") as number:
        assert number is None


def test_keys_lie_in_many_folders(tmp_path):
    folders = {hashed(tmp_path, str(i), ".json").parent.name for i in range(5000)}
    assert len(folders) == 256
