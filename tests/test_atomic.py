"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from timeviper_fast.atomic import lock, naming, whole_file


def test_a_file_appears_with_its_content_and_directories(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with whole_file(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
        assert partial.name.startswith(".")
        assert partial.suffix == ".txt"
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write(partial):
        partial.write_text("ne")
        raise error

    with pytest.raises(error), whole_file(target) as partial:
        write(partial)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_error_that_names_no_file_gets_the_target(tmp_path):
    """As that of a full disk."""
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(partial):
        raise full

    with pytest.raises(OSError, match="No space left") as it, whole_file(tmp_path / "a") as partial:
        write(partial)
    assert it.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as it, naming(tmp_path / "a"):
        (tmp_path / "gone").read_text()
    assert it.value.filename == str(tmp_path / "gone")


def test_a_killed_process_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    code = (
        "import os, pathlib; from timeviper_fast.atomic import whole_file\n"
        f"with whole_file(pathlib.Path({str(target)!r})) as partial:\n"
        "    partial.write_text('ne'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    (left,) = (name for name in os.listdir(tmp_path) if name != "file.txt")
    assert left.startswith(".")


def test_a_file_is_locked_until_it_is_closed(tmp_path):
    path = tmp_path / "file"
    with path.open("ab") as one, path.open("ab") as other:
        assert lock(one)
        assert not lock(other)
        one.close()
        assert lock(other)
