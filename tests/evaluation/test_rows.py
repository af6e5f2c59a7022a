"""Rows survive a kill at any byte, and a run with other settings is refused."""

from __future__ import annotations

import os

import pytest

from timeviper_fast.evaluation.rows import Row, RowFile, keep_settings
from timeviper_fast.evaluation.score import Score


def row(video=0, kept=1):
    return Row(
        *("none", 0.1, 64, video, "sign", 0, 0.5, "What?", "K7", "K7"),
        right=True,
        needed=(3, 4),
        kept=kept,
        seconds=0.1,
        video_seconds=0.2,
    )


def test_rows_are_read_again(tmp_path):
    with RowFile(tmp_path / "rows.jsonl") as rows:
        rows.add(row(0))
        rows.add(row(1))
    with RowFile(tmp_path / "rows.jsonl") as again:
        assert list(again) == [row(0), row(1)]
        assert again.keys == {("none", 0.1, 64, 0, "sign"), ("none", 0.1, 64, 1, "sign")}
    assert row().answered == Score(1, 1)
    assert (row().retained, row(kept=None).retained) == (Score(1, 2), Score(0, 0))


def test_a_run_that_was_killed_is_continued(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RowFile(path) as rows:
        rows.add(row(0))
        one = path.stat().st_size
        rows.add(row(1))
    whole = path.read_bytes()
    for cut in (1, one - 1, one, one + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with RowFile(path) as again:
            assert list(again) == [row(0)] * (cut >= one)
            for i in range(len(again.rows), 2):
                again.add(row(i))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["no json", "{}", '{"needed": [1]}', "[]", '"text"'])
def test_a_file_of_something_else_is_refused(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"out must hold rows of a needle run, got rows\.jsonl:1;"):
        RowFile(path)
    assert path.read_text() == f"{line}\n"


def test_lines_are_taken_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RowFile(path) as rows:
        for i in range(3):
            rows.add(row(i))
        rows.drop(lambda one: one.video == 1)
        assert [key[3] for key in sorted(rows.keys)] == [0, 2]
        rows.add(row(1))
    assert RowFile(path).rows == [row(0), row(2), row(1)]


def test_a_full_disk_names_the_file(tmp_path):
    """/dev/full refuses every byte."""
    rows = RowFile(tmp_path / "rows.jsonl")
    rows.close()
    rows._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")
    for write in (lambda: rows.add(row()), rows.close):
        with pytest.raises(OSError, match=r"No space left on device: '.*rows\.jsonl'"):
            write()
    assert rows.rows == []


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_settings_that_are_none_are_refused(tmp_path, text):
    """As those of a run that an older version wrote while the disk was full."""
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"out must hold the settings of a run, got none in .*;"):
        keep_settings(path, {"seed": 1})


def test_settings_are_kept_and_compared(tmp_path):
    path = tmp_path / "settings.json"
    keep_settings(path, {"seed": 1, "tasks": ("sign",)})
    keep_settings(path, {"seed": 1, "tasks": ["sign"]})
    for other in ({"seed": 2, "tasks": ["sign"]}, {"seed": 1}, {"seed": 1, "tasks": [], "x": 1}):
        with pytest.raises(ValueError, match=r"out must hold rows of the same (seed|tasks)"):
            keep_settings(path, other)


def test_a_file_has_one_writer(tmp_path):
    """Two runs would overwrite each other's lines."""
    path = tmp_path / "rows.jsonl"
    with RowFile(path) as one:
        one.add(row(0))
        for _ in range(2):
            with pytest.raises(
                ValueError, match="out must be the folder of one run at a time, got"
            ):
                RowFile(path)
            # the file is another one then
            one.drop(lambda line: False)
        one.add(row(1))
    with RowFile(path) as again:
        assert again.rows == [row(0), row(1)]
