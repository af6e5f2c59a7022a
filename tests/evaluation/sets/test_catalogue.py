"""Sets by name, and videos that are missing."""

from __future__ import annotations

import pytest

from tests.evaluation.sets import common
from timeviper_fast.errors import ArgumentError
from timeviper_fast.evaluation.sets.catalogue import missing_videos, read_set


def test_missing_videos_are_named_once(tmp_path):
    common.mv_bench(tmp_path)
    rows = read_set("mvbench", tmp_path)
    assert missing_videos(rows) == [tmp_path / "video/perception/videos/clip.mp4"]


def test_wrong_names_and_folders(tmp_path):
    with pytest.raises(ArgumentError, match=r"set must be one of video-mme, .*, got 'videomme'"):
        read_set("videomme", tmp_path)
    with pytest.raises(ArgumentError, match=r"folder must be a directory, got .*gone"):
        read_set("mlvu", tmp_path / "gone")
    with pytest.raises(ArgumentError, match=r"folder must hold json/\*\.json, got"):
        read_set("mlvu", tmp_path)
    common.write(tmp_path / "json/9_summary.json", [{"video": "a.mp4", "question": "Tell."}])
    with pytest.raises(ArgumentError, match="folder must hold a question with options"):
        read_set("mlvu", tmp_path)


def test_questions_that_are_left_out_are_told(tmp_path):
    path, told = common.mlvu(tmp_path), []
    assert len(read_set("mlvu", tmp_path, told.append)) == 2
    assert [one.where for one in told] == [f"{path}:row 2"]
