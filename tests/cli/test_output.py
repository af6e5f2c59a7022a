"""The answer in a file, and nothing but the answer."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli.common import one_line
from timeviper_fast import TimeViper
from timeviper_fast.cli import output, terminal


@pytest.fixture
def ask(home):
    return ("ask", home / "video.mp4", "What?", "--model", home / "model", "--max-new-tokens", 2)


def test_the_answer_goes_to_the_file_instead(run, ask, tmp_path):
    _, said, _ = run(*ask)
    target = tmp_path / "new" / "answer.txt"
    code, out, err = run(*ask, "--output", target)
    assert (code, out, err) == (0, "", f"wrote {target}\n")
    assert target.read_text() == said
    # an existing file is replaced, and a link stays one
    link = tmp_path / "link"
    link.symlink_to(target)
    assert run(*ask, "-o", link, "--json", "--quiet") == (0, "", "")
    assert json.loads(target.read_text())["text"] == said.strip()
    assert link.is_symlink()
    assert os.listdir(target.parent) == ["answer.txt"]
    assert run(*ask, "-o", "-") == (0, said, "")


@pytest.mark.parametrize("name", ["video.mp4", "model/../video.mp4", "model/config.json", "link"])
def test_what_is_read_is_not_replaced(run, ask, home, name):
    link = home / "link"
    if not link.exists():
        link.symlink_to(home / "video.mp4")
    before = (home / name).read_bytes()
    one_line(run(*ask, "-o", home / name), "--output must be another file than", "which is read")
    assert (home / name).read_bytes() == before
    assert run(*ask, "-o", home / "model.txt")[0] == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", "--output must be a file, got the directory "),
        ("new/", "--output must be a file, got the directory "),
        ("file/answer.txt", "--output must be a file that can be written (Not a directory), got "),
    ],
)
def test_what_cannot_be_written_is_found_before_the_work(
    run, ask, tmp_path, monkeypatch, name, words
):
    monkeypatch.setattr(TimeViper, "from_pretrained", lambda *_, **__: pytest.fail("model read"))
    (tmp_path / "file").touch()
    one_line(run(*ask, "--output", f"{tmp_path}/{name}"), words)
    one_line(run(*ask, "--output", ""), "'--output' / '-o': must not be empty")
    assert os.listdir(tmp_path) == ["file"]


def test_an_answer_that_the_disk_does_not_take_is_printed(run, ask, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    _, said, _ = run(*ask)
    monkeypatch.setattr(terminal, "write", full)
    code, out, err = run(*ask, "-o", tmp_path / "answer.txt")
    assert (code, out) == (2, said)
    assert "No space left on device" in err


def test_a_device_or_a_pipe_is_written_to(tmp_path):
    assert str(output.writable("/dev/null")) == "/dev/null"
    output.write(output.writable("/dev/null"), "gone")
    assert not os.path.isfile("/dev/null")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    old = tmp_path / "answer.txt"
    old.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        output.write(output.writable(str(old)), "\ud800")
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["answer.txt"]
