"""Charades-STA: lines with a span and a sentence."""

from __future__ import annotations

import pytest

from tests.evaluation.sets.common import charades_sta
from timeviper_fast.errors import DataError
from timeviper_fast.evaluation.sets.catalogue import read_set


def test_lines_become_rows(tmp_path):
    path = charades_sta(tmp_path)
    path.write_text(path.read_text() + "\n")
    (tmp_path / "Charades_v1_test.csv").write_text("id,subject,length\nK1L2M,x,31.5\n")
    one, two = read_set("charades-sta", tmp_path)
    assert (one.id, one.question, one.answer) == ("1", "a person opens a box.", (2.5, 10.0))
    assert (two.answer, two.duration, two.options) == ((3.0, 4.25), 31.5, ())
    assert (one.spans, two.spans) == (((2.5, 10.0),), ((3.0, 4.25),))
    assert one.video == tmp_path / "Charades_v1/K1L2M.mp4"


@pytest.mark.parametrize("name", ["Charades_sta_test.txt", "charades_sta_test.txt"])
def test_annotations_in_their_own_folder_and_small_videos(tmp_path, name):
    path = charades_sta(tmp_path)
    (tmp_path / "Charades_anno").mkdir()
    path.rename(tmp_path / "Charades_anno" / name)
    (tmp_path / "Charades_anno/Charades_v1_test.csv").write_text("id,length\nK1L2M,31.5\n")
    (tmp_path / "Charades_v1_480").mkdir()
    (tmp_path / "Charades_v1_480/K1L2M.mp4").touch()
    one, _ = read_set("charades-sta", tmp_path)
    assert one.duration == 31.5
    assert one.video == tmp_path / "Charades_v1_480/K1L2M.mp4"


def test_a_line_that_is_no_utf8_is_refused(tmp_path):
    path = charades_sta(tmp_path)
    path.write_bytes(path.read_bytes() + b"K1L2M 1 2##they dr\xfcm.\n")
    with pytest.raises(DataError, match=r"Charades_sta_test\.txt:3: the line must be UTF-8"):
        read_set("charades-sta", tmp_path)
    charades_sta(tmp_path)
    (tmp_path / "Charades_v1_test.csv").write_bytes(b"id,length\nK1L2M,3\nK\xff,1\n")
    with pytest.raises(DataError, match=r"Charades_v1_test\.csv:3: the line must be UTF-8"):
        read_set("charades-sta", tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("K1 2##wave", "the line must be `VIDEO start end##sentence`, not 'K1 2##wave'"),
        ("K1 2 3##", "the line must be"),
        ("", "the line must be"),
        ("K1 3 3##wave", r"end must lie behind start \(3\), not at 3"),
    ],
)
def test_a_malformed_line_is_refused(tmp_path, line, said):
    charades_sta(tmp_path, f"K1L2M 1 2##they sit.\n{line}\nK1L2M 1 2##they sit.\n")
    with pytest.raises(DataError, match=rf"Charades_sta_test\.txt:2: {said}"):
        read_set("charades-sta", tmp_path)


def test_a_malformed_table_of_lengths_is_refused(tmp_path):
    charades_sta(tmp_path)
    (tmp_path / "Charades_v1_test.csv").write_text("id,length\nK1L2M,long\n")
    with pytest.raises(DataError, match=r"Charades_v1_test\.csv:2: the line must have an id and"):
        read_set("charades-sta", tmp_path)
