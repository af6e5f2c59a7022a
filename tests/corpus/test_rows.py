"""Questions files in both forms; wrong rows are named by file and row."""

from __future__ import annotations

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from timeviper_fast.corpus.rows import read_rows, shard_of
from timeviper_fast.errors import ArgumentError, DataError


def written(folder, *lines):
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_row_has_one_video_and_its_questions(tmp_path):
    asked = ["Who?", {"id": "why", "question": "Why?", "options": ["rain", "wind"]}]
    line = {"id": "a", "video": "films/a.mp4", "start": 2, "end": 5.5, "questions": asked}
    (row,) = read_rows(written(tmp_path, line))
    assert (row.id, row.path, row.start, row.end) == ("a", tmp_path / "films/a.mp4", 2, 5.5)
    assert [one.id for one in row.questions] == ["1", "why"]
    assert row.questions[1].prompt == "Why?\nA. rain\nB. wind"


def test_single_questions_are_joined_by_video_and_part(tmp_path):
    one = {"video": "a.mp4", "question": "Who?"}
    rows = read_rows(
        written(
            tmp_path,
            one,
            {"video": "b.mp4", "question": "Who?"},
            {**one, "id": "z", "question": "Why?"},
            {**one, "start": 3},
        )
    )
    assert [(row.id, [q.id for q in row.questions]) for row in rows] == [
        ("a.mp4", ["1", "z"]),
        ("b.mp4", ["1"]),
        ("a.mp4#3-", ["1"]),
    ]


def test_parquet_gives_the_rows_of_json_lines(tmp_path):
    lines = [{"id": str(i), "video": f"{i}.mp4", "questions": ["Who?", "Why?"]} for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "q.parquet")
    assert read_rows(tmp_path / "q.parquet") == read_rows(written(tmp_path, *lines))


def test_another_folder_is_the_same_row_and_another_question_is_not(tmp_path):
    line = {"video": "a.mp4", "questions": ["Who?"]}
    (tmp_path / "other").mkdir()
    (here,), (there,) = (read_rows(written(f, line)) for f in (tmp_path, tmp_path / "other"))
    (changed,) = read_rows(written(tmp_path, {**line, "questions": ["Why?"]}))
    assert here.digest == there.digest != changed.digest


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"questions": ["Who?"]}], "q.jsonl:1: video must be a text that is not empty"),
        ([{"video": "a", "questions": []}], "q.jsonl:1: questions must be a list of one question"),
        (
            [{"video": "a", "questions": ["x", ""]}],
            "q.jsonl:1, question 2: question must be a text",
        ),
        ([{"video": "a", "questions": [3]}], "q.jsonl:1, question 1: the row must be an object"),
        ([{"video": "a", "questions": ["x"], "start": 3, "end": 3}], "end must be above start, 3"),
        ([{"video": "a", "questions": ["x"], "start": -1}], "start must be a finite number of 0"),
        ([{"video": "a", "questions": ["x"]}] * 2, "q.jsonl:2: its id must be new, but a stands"),
        (
            [
                {"video": "a", "question": "x", "id": "1"},
                {"video": "a", "question": "y", "id": "1"},
            ],
            "q.jsonl:1: the ids of a video's questions must differ, but 1 is twice",
        ),
        ([{"video": "a", "questions": [{"question": "x", "options": ["y"]}]}], "options must be"),
    ],
)
def test_wrong_rows(tmp_path, lines, said):
    with pytest.raises(DataError, match=re.escape(said)):
        read_rows(written(tmp_path, *lines))


@pytest.mark.parametrize("name", ["q.csv", "gone.jsonl"])
def test_files_that_are_none(tmp_path, name):
    (tmp_path / "q.csv").touch()
    with pytest.raises(ArgumentError, match=r"questions must be a \.jsonl, \.json, \.parquet file"):
        read_rows(tmp_path / name)
    with pytest.raises(ArgumentError, match="questions must hold a row or more"):
        read_rows(written(tmp_path))


def test_shards_are_a_partition_that_new_rows_do_not_move(tmp_path):
    lines = [{"video": f"{i}.mp4", "questions": ["Who?"]} for i in range(40)]
    few, many = read_rows(written(tmp_path, *lines[:30])), read_rows(written(tmp_path, *lines))
    shards = [{row.id for row in shard_of(many, i, 3)} for i in range(3)]
    assert sum(map(len, shards)) == 40
    assert set().union(*shards) == {row.id for row in many}
    assert all({row.id for row in shard_of(few, i, 3)} <= shards[i] for i in range(3))
    assert min(map(len, shards)) > 3
