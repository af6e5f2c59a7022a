"""Annotation files of every form are read row by row, and all faults of a row are listed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataset.common import jsonl, talk, turns
from timeviper_fast.dataset.rows import Row, Rows, parse_row
from timeviper_fast.errors import DataError

ASKED = {"video": "a.mp4", "conversations": talk("What?", "That.")}


def write(path: Path, text: str, encoding: str = "utf-8") -> Rows:
    path.write_text(text, encoding=encoding)
    return Rows(path)


def test_a_row_of_llava(tmp_path: Path) -> None:
    value = {
        "id": 7,
        "video": "films/a.mp4",
        "conversations": talk("<image>\nWhat?", "That.", "Why?", "So."),
    }
    row = Rows(jsonl(tmp_path / "a.jsonl", [value]))[0]
    assert row.messages == turns("What?", "That.", "Why?", "So.")
    assert (row.media, row.is_image, row.id) == (tmp_path / "films/a.mp4", False, "7")
    assert (row.placeholder, row.start, row.end, row.span) == (None, None, None, None)


def test_a_row_of_messages_and_an_absolute_path(tmp_path: Path) -> None:
    value = {"image": str(tmp_path / "b.png"), "messages": [*turns("What?", "That.")]}
    row = Rows(jsonl(tmp_path / "a.jsonl", [value]), "/elsewhere")[0]
    assert (row.messages, row.media, row.is_image) == (
        turns("What?", "That."),
        tmp_path / "b.png",
        True,
    )


@pytest.mark.parametrize(
    ("texts", "messages", "mark"),
    [
        (("<video>What?", "A."), ("What?", "A."), None),
        ((" <image><image>\n\n What?", "A."), ("What?", "A."), None),
        (("Look at <image> here.", "A."), ("Look at <image> here.", "A."), "<image>"),
        (("What?\n<video>", "A."), ("What?\n<video>", "A."), "<video>"),
        (
            ("Hello.", "Hi.", "<image>\nWhat?", "A."),
            ("Hello.", "Hi.", "<image>\nWhat?", "A."),
            "<image>",
        ),
    ],
)
def test_the_place_of_the_vision(
    texts: tuple[str, ...], messages: tuple[str, ...], mark: str
) -> None:
    row, _ = parse_row({"video": "a.mp4", "conversations": talk(*texts)}, Path())
    assert row is not None
    assert (row.messages, row.placeholder) == (turns(*messages), mark)


def test_a_part_and_a_span_in_the_names_of_other_projects() -> None:
    for first, last in (("start", "end"), ("video_start", "video_end")):
        row, _ = parse_row({**ASKED, first: 1.5, last: "0:10", "span": [2, 4.5]}, Path())
        assert row is not None
        assert (row.start, row.end, row.span) == (1.5, 10.0, (2.0, 4.5))


def test_image_may_name_a_video_and_a_caption_needs_no_question() -> None:
    row, _ = parse_row({"image": "a.mp4", "caption": "A dog runs."}, Path("m"))
    assert row is not None
    assert (row.media, row.is_image, row.caption, row.messages) == (
        Path("m/a.mp4"),
        False,
        "A dog runs.",
        (),
    )


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"conversations": talk("What?")}, ["there is no answer to the last question"]),
        ({"conversations": talk("What?", " ")}, ["turn 1 is a blank answer"]),
        ({"conversations": talk("<image>\n", "A.")}, ["turn 0 is a blank question"]),
        ({"conversations": talk("", "A.", "B?", "C.")}, ["turn 0 is a blank question"]),
        ({"conversations": []}, ["conversations must be a list of turns, got []"]),
        ({"conversations": None}, ["there are no conversations, messages or caption"]),
        ({"conversations": [3, *talk("", "A.")[1:]]}, ["turn 0 must be by human or user, got None", "turn 0 must have a text 'value', got None"]),
        ({"conversations": [{"from": "system", "value": "Be."}, *talk("B?", "A.")]}, ["turn 0 must be by human or user, got 'system'", "turn 1 must be by gpt or assistant, got 'human'", "turn 2 must be by human or user, got 'gpt'", "there is no answer to the last question"]),
        ({"conversations": talk("<image> or <video>?", "A.")}, ["the vision must have one place, got 2"]),
        ({"conversations": talk("What?", "An <image>.")}, ["turn 1 is an answer, which must not hold the mark <image>"]),
        ({"video": None, "conversations": talk("<video>What?", "A.")}, ["turn 0 has the mark <video>, and there is no video or image"]),
        ({"image": "b.png"}, ["a row must have a video or an image, not both"]),
        ({"video": ["a", "b"]}, ["video must be the path of one file, got ['a', 'b']"]),
        ({"video": ""}, ["video must be the path of one file, got ''"]),
        ({"start": -1}, ["start must be a time of 0 or more, as seconds, mm:ss or hh:mm:ss, got -1"]),
        ({"start": 5, "end": 5}, ["end must lie after the start (00:05), got 00:05"]),
        ({"span": [3, 2]}, ["span must be [first, last] in seconds, 0 <= first <= last, got [3, 2]"]),
        ({"span": [3, float("nan")]}, ["span must be [first, last] in seconds, 0 <= first <= last, got [3, nan]"]),
        ({"span": [1, 2], "start": 3}, ["span must touch the part from start to end, got [1.0, 2.0]"]),
        ({"video": None, "start": 3}, ["start, end and span are for videos, and there is none"]),
        ({"caption": 3}, ["caption must be text, got 3"]),
        ({"conversations": talk("\ud800?", "A.")}, ["turn 0 is not valid Unicode"]),
    ],
)  # fmt: skip
def test_everything_that_is_wrong_with_a_row(change: dict[str, Any], reasons: list[str]) -> None:
    assert parse_row({**ASKED, **change}, Path()) == (None, reasons)


def test_the_lines_of_jsonl_with_blank_ones_a_mark_and_windows_ends(tmp_path: Path) -> None:
    lines = ["\ufeff" + json.dumps({**ASKED, "id": "ä"}), "", json.dumps(ASKED), "{oops", "[1]"]
    rows = write(tmp_path / "a.jsonl", "\r\n".join(lines))
    assert [rows.where(i) for i in range(len(rows))] == [f"{rows.path}:{n}" for n in (1, 3, 4, 5)]
    assert (rows[0].id, rows[1].id) == ("ä", "")
    with pytest.raises(DataError, match=r"a.jsonl:4: it is no JSON \("):
        rows[2]
    with pytest.raises(DataError, match=r"a.jsonl:5: a row must be an object, got \[1\]"):
        rows[3]


@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.integers()), max_size=5),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_an_array_and_lines_hold_the_same_rows(
    tmp_path_factory: Any, values: list[Any], ascii_only: bool, indent: int | None
) -> None:
    values = [{**value, **ASKED, "id": str(value.get("id", i))} for i, value in enumerate(values)]
    home = tmp_path_factory.mktemp("rows")
    array = write(home / "a.json", json.dumps(values, ensure_ascii=ascii_only, indent=indent))
    lines = write(
        home / "a.jsonl", "".join(json.dumps(v, ensure_ascii=ascii_only) + "\n" for v in values)
    )
    assert [array[i] for i in range(len(array))] == [lines[i] for i in range(len(lines))]
    assert [row.id for row in lines] == [value["id"] for value in values]
    assert array.faults == lines.faults == []


def test_an_array_behind_a_byte_order_mark(tmp_path: Path) -> None:
    rows = write(
        tmp_path / "a.json", "\ufeff" + json.dumps([ASKED, {**ASKED, "id": "ö"}], indent=1)
    )
    assert [rows[0].id, rows[1].id] == ["", "ö"]


def test_an_array_that_breaks_off_keeps_the_rows_before(tmp_path: Path) -> None:
    text = json.dumps([ASKED, ASKED], indent=1)
    rows = write(tmp_path / "a.json", text[:-40])
    assert len(rows) == 1
    assert [fault.where for fault in rows.faults] == [
        f"{rows.path}:{1 + json.dumps([ASKED], indent=1).count(chr(10))}"
    ]
    assert "the array breaks off here" in rows.faults[0].reason
    assert (
        write(tmp_path / "b.json", f"[{json.dumps(ASKED)} 3]")
        .faults[0]
        .reason.startswith("a comma or")
    )
    assert write(tmp_path / "c.json", "[] x").faults[0].reason == "there is text after the array"
    (tmp_path / "d.json").write_bytes(b'[\n"\xff"]')
    assert (
        str(Rows(tmp_path / "d.json").faults[0])
        == f"{tmp_path}/d.json:2: the text is not UTF-8; no row of the file is read"
    )
    assert [len(write(tmp_path / "e.json", text)) for text in ("", " \n", "[]", "[ ]")] == [
        0,
        0,
        0,
        0,
    ]


def test_only_places_are_kept_and_a_changed_file_is_said(tmp_path: Path) -> None:
    rows = Rows(jsonl(tmp_path / "a.jsonl", [ASKED] * 3))
    os.utime(rows.path, (0, 0))
    with pytest.raises(DataError, match=r"a\.jsonl: the file has changed since it was opened"):
        rows[1]
    with pytest.raises(FileNotFoundError, match="nothing"):
        Rows(tmp_path / "nothing.json")


def test_the_documented_row_is_a_row_and_every_field_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```json\n(.*?)```", page, re.S)
    row, faults = parse_row(json.loads(text), Path("videos"))
    assert faults == []
    assert row.media == Path("videos/films/a.mp4")
    assert row.messages == turns("What happens?", "A goal.", "Who scores?", "Number nine.")
    table = re.findall(r"^\| (`.*?) \|", page, re.M)
    assert {f.name for f in fields(Row)} - {"media", "is_image", "placeholder"} <= set(
        re.findall(r"`(\w+)`", " ".join(table))
    )
