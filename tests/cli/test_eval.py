"""`timeviper-fast eval`: its tables, files and JSON; a continued run; mistakes."""

from __future__ import annotations

import json

from tests.cli.common import one_line
from tests.evaluation.sets.common import charades_sta, mlvu, video_mme, world
from timeviper_fast.timeviper import TimeViper


def test_tables_files_and_json(run, home, tmp_path):
    rows = world(tmp_path / "set", videos=2, questions=2, frames=8)
    rows[0].video.unlink()
    words = ["eval", "mlvu", tmp_path / "set", "--model", home / "model", "--max-new-tokens", 1]
    words += ["--out", tmp_path / "out", "--sample", "uniform:4"]
    code, out, err = run(*words)
    assert code == 0, err
    assert f"1 of 2 videos are missing: {rows[0].video}" in " ".join(err.split())
    said = " ".join(out.split())
    assert "2 of 4 answered, 0 failed, 2 without a video; neither rule reads" in said
    for words_of_a_table in ("rule: paper", "rule: strict", "micro: all questions", "macro: mean"):
        assert words_of_a_table in said
    told = json.loads(run(*words, "--json", "-q")[1])
    assert told == json.loads((tmp_path / "out/scores.json").read_text())
    assert len((tmp_path / "out/answers.jsonl").read_text().splitlines()) == 2
    one_line(
        run(*words, "-q", "--style", "letter"), '--out must hold rows of the same style ("letter")'
    )


def test_what_failed_is_said_and_nothing_answered_is_exit_code_1(run, home, tmp_path):
    charades_sta(tmp_path / "set")
    (tmp_path / "set/Charades_v1").mkdir()
    video = tmp_path / "set/Charades_v1/K1L2M.mp4"
    words = ["eval", "charades-sta", tmp_path / "set", "--model", home / "model"]
    words += ["--out", tmp_path / "out", "--max-new-tokens", 1, "--sample", "uniform:4"]
    one_line(
        run(*words), f"DIR must hold the videos of its questions, got none of 1, such as {video}"
    )
    video.write_text("no video")
    code, out, err = run(*words)
    assert code == 1
    assert "0 of 2 answered, 2 failed, 0 without a video" in " ".join(out.split())
    assert "2 questions failed: " in err
    assert "K1L2M.mp4" in " ".join(err.split())
    video.write_bytes((home / "video.mp4").read_bytes())
    assert run(*words)[0] == 1
    code, out, err = run(*words, "--retry")
    assert (code, "2 of 2 answered, 0 failed" in " ".join(out.split())) == (0, True)
    assert "questions failed" not in err


def test_subtitles(run, home, tmp_path):
    video_mme(tmp_path / "set")
    (tmp_path / "set/data").mkdir()
    (tmp_path / "set/data/kite.mp4").write_bytes((home / "video.mp4").read_bytes())
    (tmp_path / "set/subtitle/kite.srt").write_text("1\n00:00:00,000 --> 00:00:02,500\nwind\n")
    words = ["eval", "video-mme", tmp_path / "set", "--model", home / "model", "--subtitles"]
    words += ["--out", tmp_path / "out", "--max-new-tokens", 1, "--sample", "uniform:4", "-q"]
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "2 of 2 have subtitles" in out


def test_spans(run, home, tmp_path):
    charades_sta(tmp_path / "set")
    (tmp_path / "set/Charades_v1").mkdir()
    (tmp_path / "set/Charades_v1/K1L2M.mp4").write_bytes((home / "video.mp4").read_bytes())
    words = ["eval", "charades-sta", tmp_path / "set", "--model", home / "model", "-q"]
    words += ["--out", tmp_path / "out", "--max-new-tokens", 1, "--sample", "uniform:4"]
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    for said in ("mIoU", "R1@IoU>0.5", "R1@IoU>=0.5", "average of these four"):
        assert said in out
    assert "top span" not in out
    code, out, _ = run(*words[:-6], "--evidence", "--max-new-tokens", 1, "--out", tmp_path / "new")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[-3:]] == [
        ["all", "question"],
        ["all", "control"],
        ["all", "above"],
    ]
    assert all("/2 " in line for line in out.splitlines()[-3:])


def test_mistakes_are_one_line_before_the_weights_are_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(TimeViper, "from_pretrained", None)
    mlvu(tmp_path / "set", answer="glass")
    one_line(run("eval", "videomme", tmp_path), "SET must be one of video-mme", "got 'videomme'")
    one_line(run("eval", "mlvu", tmp_path / "gone"), "DIR must be a directory")
    one_line(
        run("eval", "mlvu", tmp_path / "set"), "1_plotQA.json:row 3: answer must equal exactly"
    )
    one_line(
        run("eval", "mlvu", tmp_path, "--style", "cot"), "--style must be one of paper, letter"
    )
    one_line(run("eval", "mlvu", tmp_path, "--sample", "often"), "--sample must")
    one_line(run("eval", "mlvu", tmp_path, "--max-new-tokens", 0), "--max-new-tokens must be a")
    mlvu(tmp_path / "whole")
    one_line(run("eval", "mlvu", tmp_path / "whole", "--evidence"), "--evidence must be left out")
    one_line(run("eval", "mlvu", tmp_path / "whole", "--subtitles"), "--subtitles must be left out")
    (tmp_path / "file").touch()
    one_line(run("eval", "mlvu", tmp_path, "--out", tmp_path / "file"), "--out must be a directory")
