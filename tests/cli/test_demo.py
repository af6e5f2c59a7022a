"""The command demo."""

from __future__ import annotations

import json
import os
import sys

from PIL import Image

from tests.cli.common import one_line


def test_demo_writes_a_video_and_shows_the_stops(run, tmp_path):
    code, out, err = run("demo", "--directory", tmp_path / "demo", "--seconds", 3)
    assert code == 0
    assert out.strip()
    assert "random" in err
    assert "prefill" in err
    assert os.listdir(tmp_path / "demo") == ["demo-3s.mp4"]


def test_demo_takes_a_video_and_a_question_of_ones_own(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("demo", home / "video.mp4", "--question", "Where is [it]?", "--json")
    assert code == 0
    assert len(json.loads(out)["frame_seconds"]) == 6
    said = " ".join(err.split())
    assert (
        "video.mp4: 00:06 of video. The model is tiny and its weights are random (seeded)" in said
    )
    assert "Q Where is [it]?" in said
    assert os.listdir(tmp_path) == []
    one_line(run("demo", home / "video.mp4", "--question", " "), "must not be empty or blank")
    one_line(run("demo", home / "nothing.mp4"), "nothing.mp4: no such file or directory")


def test_demo_says_what_was_left_out(run, tmp_path):
    for name in ("0.png", "1.png", "notes.txt"):
        Image.new("RGB", (64, 48)).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("two pictures")
    code, _, err = run("demo", tmp_path)
    assert code == 0
    assert "left out of the directory: 1 file of another kind (notes.txt)" in err


def test_demo_without_the_video_library_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    one_line(run("demo", "--directory", tmp_path / "demo"), 'pip install "timeviper-fast[video]"')
    assert os.listdir(tmp_path) == []
