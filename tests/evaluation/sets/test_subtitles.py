"""Subtitles of both formats, and the lines that are spoken while frames are shown."""

from __future__ import annotations

from math import inf

import pytest

from tests.evaluation.sets.common import question, write
from timeviper_fast.errors import DataError
from timeviper_fast.evaluation.sets.subtitles import Line, read_subtitles, spoken, subtitles_of

# with a byte-order mark, tags, an empty first line of text, a text that is a number, an empty block
SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
<font color="white" size=".72c">the wind</font>
rises

2
01:00:00.000 --> 01:00:04.000 align:start
\x20
10
3
01:00:05,000 --> 01:00:06,000

4
01:00:07,000 --> 01:00:08,000
goodbye"""


def test_srt(tmp_path):
    path = tmp_path / "kite.srt"
    path.write_text(SRT, encoding="utf-8")
    assert read_subtitles(path) == [
        Line(1.0, 2.5, "the wind rises"),
        Line(3600.0, 3604.0, "10"),
        Line(3607.0, 3608.0, "goodbye"),
    ]
    path.write_text("")
    assert read_subtitles(path) == []


def test_json_with_either_kind_of_times(tmp_path):
    """A short line counts as one second; a line without an end lasts to the end of the video."""
    rows = [
        {"timestamp": [1.0, 3.0], "text": "a boat"},
        {"timestamp": [4.0, 4.2], "text": "short"},
        {"timestamp": [9.5, None], "text": "last"},
        {"start": "00:01:00.000", "end": "00:01:02.500", "line": " a ship "},
    ]
    assert read_subtitles(write(tmp_path / "boat_en.json", rows)) == [
        Line(1.0, 3.0, "a boat"),
        Line(pytest.approx(3.6), pytest.approx(4.6), "short"),
        Line(9.5, inf, "last"),
        Line(60.0, 62.5, "a ship"),
    ]


def test_a_line_is_shown_if_a_frame_is_shown_while_it_is_spoken():
    lines = [Line(4, 6, "b"), Line(0, 2, "a"), Line(2, 4, "a"), Line(6, 8, "a"), Line(8, inf, "c")]
    assert spoken(lines, [0.0, 2.0, 5.0, 7.9]) == ["a", "b", "a"]
    assert spoken(lines, [2.0]) == ["a"]
    assert spoken(lines, [100.0]) == ["c"]
    assert spoken(lines, []) == spoken([], [1.0]) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.srt", "1\n00:00:01 --> soon\n", r"a\.srt:2: the line must be a number or `start --> "),
        ("a.srt", "WEBVTT\n", r"a\.srt:1: the line must be a number or `start --> end`, not 'WEB"),
        ("a.json", '[{"timestamp": [1], "text": ""}]', r"row 1: timestamp must be a list \[start"),
        ("a.json", '[{"start": 1, "end": 2, "line": ""}]', "row 1: start must be a time such as"),
        ("a.json", '[{"timestamp": [1, 2]}]', "row 1: text must be a text, but is missing"),
        ("a.json", "{}", r"a\.json: the file must hold one array"),
    ],
)
def test_malformed_subtitles_are_refused_by_file_and_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        subtitles_of([question(subtitles=tmp_path / name)])


def test_each_file_is_read_once_and_rows_without_any_are_refused(tmp_path):
    path = tmp_path / "kite.srt"
    path.write_text(SRT)
    rows = [question(subtitles=path), question(id="2", subtitles=path), question(id="3")]
    assert list(subtitles_of(rows)) == [path]
    for rows in ([question()], [question(subtitles=tmp_path / "words.jsonl")]):
        with pytest.raises(ValueError, match="eval: subtitles must be left out for rows without"):
            subtitles_of(rows)
