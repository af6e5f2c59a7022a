"""Rows of JSON, JSON lines and parquet; a wrong one is named by file and row."""

from __future__ import annotations

import sys

import pyarrow.parquet
import pytest

from timeviper_fast.errors import ArgumentError, DataError
from timeviper_fast.evaluation.sets.files import TEXTS, Record, find, records


def test_rows_of_json_and_of_lines(tmp_path):
    lines, array = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text('{"x": "1"}\n\n{"x": "2"}\n')
    array.write_text('[{"x": "1"},\n {"x": "2"}]')
    assert [(r.where, r.get("x")) for r in records(lines)] == [
        (f"{lines}:1", "1"),
        (f"{lines}:3", "2"),
    ]
    assert [r.where for r in records(array)] == [f"{array}:row 1", f"{array}:row 2"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"x": 1}\n{"x": \n', r"a\.jsonl:2: it is no JSON"),
        ("a.jsonl", '{"x": 1}\n[1]\n', r"a\.jsonl:2: the row must be an object, not \[1\]"),
        ("a.json", "[{}, 3]", r"a\.json:row 2: the row must be an object, not 3"),
        ("a.json", '{"x": 1}', r"a\.json: the file must hold one array, not \{'x': 1\}"),
        ("a.json", "[", r"a\.json: it is no JSON"),
    ],
)
def test_what_is_no_row_is_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        list(records(tmp_path / name))


def test_fields_are_checked():
    record = Record("f:1", {"a": "B", "n": 2, "texts": ["x", "y"], "none": None})
    assert record.get("a") == "B"
    assert record.get("texts", TEXTS) == ["x", "y"]
    assert record.maybe("none", TEXTS) is None
    assert record.maybe("gone", TEXTS) is None
    assert record.letter("a", "xy") == "B"
    for call, said in (
        (lambda: record.get("n"), "f:1: n must be a text that is not empty, not 2"),
        (lambda: record.get("gone"), "gone must be a text that is not empty, but is missing"),
        (lambda: record.get("a", TEXTS), "a must be a list of 2 to 26 texts"),
        (lambda: record.letter("a", "x"), "a must be a letter from A to A, not 'B'"),
        (lambda: record.index("n", "xy"), "n must be an integer from 0 to 1, not 2"),
        (lambda: record.text_of("a", ["x", "y"]), "a must equal exactly one of the candidates"),
        (lambda: record.text_of("a", ["B", "B"]), "a must equal exactly one of the candidates"),
        (lambda: record.lettered("a", ["A. x", "C. y"]), "a must have the option B as 'B. text'"),
        (lambda: record.lettered("a", ["A. x"]), "a must have 2 to 26 options"),
    ):
        with pytest.raises(DataError, match=said):
            call()


def test_the_first_pattern_with_files_counts(tmp_path):
    (tmp_path / "b.txt").touch()
    assert find(tmp_path, "a*", "b*") == [tmp_path / "b.txt"]
    with pytest.raises(ArgumentError, match=r"folder must hold a\* or c\*, got '[^']*'$"):
        find(tmp_path, "a*", "c*")


def test_a_folder_one_level_off_is_named(tmp_path):
    (tmp_path / "set/json").mkdir(parents=True)
    (tmp_path / "set/json/1.json").touch()
    for folder in (tmp_path, tmp_path / "set/json"):
        with pytest.raises(ArgumentError, match=f"must hold json/.*; {tmp_path}/set does$"):
            find(folder, "json/*.json")


def test_parquet_needs_pyarrow_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = (
        r"pyarrow must be installed, got none for .*a\.parquet; install timeviper-fast\[parquet\]"
    )
    with pytest.raises(ArgumentError, match=said):
        list(records(tmp_path / "a.parquet"))


def test_parquet_rows_have_numbers(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"x": ["1", "2"]}), path)
    assert [(r.where, r.get("x")) for r in records(path)][1] == (f"{path}:row 2", "2")
    path.write_text("no table")
    with pytest.raises(DataError, match=r"a\.parquet: it is no parquet file"):
        list(records(path))
