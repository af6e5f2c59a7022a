"""Each multiple-choice format is read as its authors publish it; a wrong row is named."""

from __future__ import annotations

import re

import pytest

from tests.evaluation.sets import common
from timeviper_fast.errors import DataError
from timeviper_fast.evaluation.sets.catalogue import SETS, read_set
from timeviper_fast.evaluation.sets.row import Place

WRITERS = {
    "video-mme": common.video_mme,
    "video-mme-v2": common.video_mme_v2,
    "lvbench": common.lv_bench,
    "mlvu": common.mlvu,
    "longvideobench": common.long_video_bench,
    "mvbench": common.mv_bench,
    "perception-test": common.perception_test,
}


def read(name, folder):
    WRITERS[name](folder)
    return read_set(name, folder)


def test_every_set_but_charades_has_options():
    assert set(SETS) == {*WRITERS, "charades-sta"}


def test_video_mme(tmp_path):
    rows = read("video-mme", tmp_path)
    assert [row.id for row in rows] == ["900-1", "900-2"]
    assert [row.answer for row in rows] == ["B", "C"]
    assert rows[0].options == tuple(common.OPTIONS)
    assert rows[0].video == tmp_path / "data/kite.mp4"
    assert rows[0].subtitles == tmp_path / "subtitle/kite.srt"
    assert rows[1].groups == {"duration": ("long",), "task": ("Colour",)}


def test_video_mme_v2(tmp_path):
    rows = read("video-mme-v2", tmp_path)
    assert [row.place for row in rows] == [Place("900", i, "[1,[2,3],4]") for i in range(1, 5)]
    assert rows[0].options == ("A. wind", "B. rain")
    assert rows[0].groups == {"type": ("logic",), "level": ("2",)}
    assert rows[0].video == tmp_path / "17.mp4"


def test_lv_bench(tmp_path):
    one, two = read("lvbench", tmp_path)
    assert one.question == "Who waits?"
    assert one.options == ("(A) a cook", "(B) a nurse", "(C) a boy")
    assert (one.answer, one.video) == ("C", tmp_path / "all_videos/harbour.mp4")
    assert (one.groups["task"], two.groups["task"]) == (("reasoning", "entity"), ("entity",))
    assert one.where == f"{tmp_path}/video_info.meta.jsonl:2"


def test_lv_bench_as_its_repository_lays_it_out(tmp_path):
    path = common.lv_bench(tmp_path)
    (tmp_path / "data").mkdir()
    path.rename(tmp_path / "data" / path.name)
    assert read_set("lvbench", tmp_path)[0].video == tmp_path / "all_videos/harbour.mp4"


def test_mv_bench_takes_whole_videos_of_charades_if_they_are_there(tmp_path):
    common.mv_bench(tmp_path)
    common.write(tmp_path / "video/star/Charades_v1_480/clip.mp4", "")
    one, *_, other = read_set("mvbench", tmp_path)
    assert one.video == tmp_path / "video/star/Charades_v1_480/clip.mp4"
    assert (one.start, one.end) == (1.5, 4.0)
    assert other.video == tmp_path / "video/perception/videos/clip.mp4"


def test_mv_bench_does_not_read_another_set(tmp_path):
    common.mlvu(tmp_path)
    with pytest.raises(
        DataError, match=r"1_plotQA\.json: the file must be named after a task of MV"
    ):
        read_set("mvbench", tmp_path)


def test_mlvu_leaves_open_questions_out(tmp_path):
    rows = read("mlvu", tmp_path)
    assert [(row.id, row.answer) for row in rows] == [("1_plotQA/1", "B"), ("1_plotQA/3", "A")]
    assert rows[0].options == ("A. bread", "B. paper")
    assert rows[0].video == tmp_path / "video/1_plotQA/9.mp4"
    assert rows[0].duration == 400.5


def test_long_video_bench(tmp_path):
    row = read("longvideobench", tmp_path)[0]
    assert (row.answer, row.options[2]) == ("C", "C. west")
    assert row.groups == {"task": ("S2E",), "duration": ("600",)}
    assert row.video == tmp_path / "videos/boat.mp4"
    assert row.subtitles == tmp_path / "subtitles/boat_en.json"
    assert row.subtitles_start == 12.5


def test_mv_bench(tmp_path):
    rows = read("mvbench", tmp_path)
    assert [row.id for row in rows] == ["action_sequence/1", "action_sequence/2", "state_change/1"]
    assert rows[0].video == tmp_path / "video/star/Action_Sequence/clip.mp4"
    assert [(row.start, row.end) for row in rows[1:]] == [(1.5, 4.0), (None, None)]
    assert rows[0].answer == "B"
    # folders of frames, three of them per second
    common.mv_bench(tmp_path).rename(tmp_path / "json/episodic_reasoning.json")
    assert read_set("mvbench", tmp_path)[0].fps == 3.0


def test_perception_test(tmp_path):
    rows = read("perception-test", tmp_path)
    assert [(row.id, row.answer) for row in rows] == [("cup/0", "B"), ("cup/3", "B")]
    assert rows[0].groups == {"task": ("physics",), "reasoning": ("descriptive",)}
    assert rows[0].video == tmp_path / "videos/cup.mp4"


@pytest.mark.parametrize(
    ("name", "changes", "where", "said"),
    [
        (
            "video-mme",
            {"answer": "E"},
            "test.jsonl:2",
            "answer must be a letter from A to D, not 'E'",
        ),
        (
            "video-mme",
            {"options": ["red", "blue"]},
            "test.jsonl:2",
            "options must have the option A",
        ),
        ("video-mme", {"options": "A. red"}, "test.jsonl:2", "options must be a list of 2 to 26"),
        ("video-mme", {"videoID": ""}, "test.jsonl:2", "videoID must be a text that is not empty"),
        ("video-mme", {"question_id": "900-1"}, "test.jsonl:2", "its id must be new, but 900-1 "),
        (
            "video-mme-v2",
            {"question_id": "900-5"},
            "test.jsonl:4",
            "question_id must be like 001-1",
        ),
        (
            "video-mme-v2",
            {"group_structure": "[4]"},
            "test.jsonl:4",
            "group_structure must be one of",
        ),
        (
            "video-mme-v2",
            {"group_type": "mixed"},
            "test.jsonl:4",
            "group_type must be relevance or",
        ),
        ("lvbench", {"question": "Who waits?"}, "jsonl:2", "question must have 2 to 26 options"),
        ("lvbench", {"question_type": []}, "jsonl:2", "question_type must be a text or a list"),
        ("mlvu", {"answer": "glass"}, "1_plotQA.json:row 3", "answer must equal exactly one of"),
        ("mlvu", {"candidates": []}, "1_plotQA.json:row 3", "candidates must be a list of 2 to 26"),
        ("mlvu", {"candidates": 0}, "1_plotQA.json:row 3", "candidates must be a list of 2 to 26"),
        ("mlvu", {"duration": "long"}, "1_plotQA.json:row 3", "duration must be a finite number"),
        (
            "longvideobench",
            {"correct_choice": 3},
            "lvb_val.json:row 2",
            "correct_choice must be an",
        ),
        (
            "longvideobench",
            {"correct_choice": True},
            "lvb_val.json:row 2",
            "correct_choice must be",
        ),
        (
            "mvbench",
            {"end": 1.5},
            "action_sequence.json:row 2",
            r"end must lie behind start \(1.5\)",
        ),
        ("perception-test", {"answer_id": "B"}, "all_valid.json:cup:row 2", "answer_id must be an"),
    ],
)
def test_a_malformed_row_is_refused_by_file_and_row(tmp_path, name, changes, where, said):
    WRITERS[name](tmp_path, **changes)
    with pytest.raises(DataError, match=f"{re.escape(where)}: {said}"):
        read_set(name, tmp_path)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("00:10-00:20", ((10.0, 20.0),)),
        ("65:01 - 1:05:30", ((3901.0, 3930.0),)),
        ("01:00-01:00", ((60.0, 60.0),)),
        ("02:00-01:00", ()),
        ("all of it", ()),
        (None, ()),
    ],
)
def test_a_time_reference_is_a_span_or_none(tmp_path, text, spans):
    common.lv_bench(tmp_path, time_reference=text)
    first, second = read_set("lvbench", tmp_path)
    assert first.spans == ((10.0, 20.0),)
    assert second.spans == spans
