"""The command demo."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from tests.cli.common import one_line, without_pyav
from timeviper_fast import demo as product
from timeviper_fast.embedded.models import TINY_NOTE
from timeviper_fast.synthetic.questions import Question


def test_demo_writes_a_video_and_checks_the_answers(run, tmp_path):
    code, out, err = run("demo", "--directory", tmp_path / "demo", "--seconds", 40)
    header, *lines = out.splitlines()
    assert header.split() == ["question", "answer", "truth"]
    assert len(lines) == 3
    wrong = sum(line.endswith("  wrong") for line in lines)
    assert wrong == sum(not line.endswith("  right") for line in lines)
    assert code == (1 if wrong else 0)
    assert "demo-0-40s.mp4: 40 frames of the synthetic world, one per second." in err
    assert TINY_NOTE in err
    assert "prefill" in err
    assert os.listdir(tmp_path / "demo") == ["demo-0-40s.mp4"]


def test_demo_answers_rightly(run, tmp_path):
    code, out, _ = run("demo", "--directory", tmp_path)
    assert (code, out.count("  right\n")) == (0, 3), out


def test_demo_as_json(run, tmp_path):
    words = ("demo", "--directory", tmp_path, "--seconds", 32, "--seed", 5, "--json")
    _, out, _ = run(*words)
    said = json.loads(out)
    assert said["video"] == str(tmp_path / "demo-5-32s.mp4")
    assert said["seed"] == 5
    for row, question in zip(said["answers"], product.DemoVideo(5, 32).questions):
        assert (row["question"], row["truth"]) == (question.text, question.answer)
        assert row["right"] == (row["text"] == row["truth"])
        assert row["model_note"] == TINY_NOTE
        assert len(row["frame_seconds"]) == 32


def test_a_wrong_answer_is_said_and_is_exit_code_one(run, tmp_path, monkeypatch):
    class Impossible(product.DemoVideo):
        def __init__(self, seed: int, seconds: int) -> None:
            super().__init__(seed, seconds)
            first, *others = self.questions
            self.questions = (Question("sign", first.text, "never", ()), *others)

    monkeypatch.setattr(product, "DemoVideo", Impossible)
    code, out, err = run("demo", "--directory", tmp_path, "--seconds", 32)
    assert code == 1
    assert out.splitlines()[1].split()[-2:] == ["never", "wrong"]
    assert err.splitlines()[-1].startswith("timeviper-fast: ")
    assert err.splitlines()[-1].endswith(" wrong")


def test_demo_without_the_video_library_asks_about_an_array(run, tmp_path, monkeypatch):
    without_pyav(monkeypatch)
    monkeypatch.chdir(tmp_path)
    code, out, err = run("demo", "--seconds", 32)
    assert code in (0, 1)
    assert len(out.splitlines()) == 4
    assert (
        'No file is written: video files need the package av (PyAV); pip install "timeviper-' in err
    )
    assert "The video is an array: 32 frames" in err
    assert os.listdir(tmp_path) == []


def test_demo_takes_a_video_and_a_question_of_ones_own(run, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("demo", home / "video.mp4", "--question", "Where is [it]?")
    assert code == 0
    assert out.strip()
    assert "Q Where is [it]?" in err
    assert TINY_NOTE in err
    code, out, _ = run("demo", home / "video.mp4", "--json")
    assert len(json.loads(out)["frame_seconds"]) == 6
    assert json.loads(out)["model_note"] == TINY_NOTE
    assert os.listdir(tmp_path) == []
    one_line(run("demo", home / "video.mp4", "--question", " "), "must not be empty or blank")
    one_line(run("demo", home / "video.mp4", "--question", ""), "must not be empty or blank")
    for option, value in (("--seed", 4), ("--seconds", 50), ("--directory", "x")):
        said = f"{option} must be given without a video of your own, got"
        one_line(run("demo", home / "video.mp4", option, value), said)
    one_line(run("demo", home / "nothing.mp4"), "nothing.mp4: no such file or directory")
    one_line(
        run("demo", "--question", "Where?"), "--question must be given with a video, got 'Where?'"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--directory", __file__),
        ("--seed", -1),
        ("--seed", "x"),
        ("--seed", 2**63),
        ("--seconds", 31),
    ],
)
def test_numbers_that_cannot_be(run, tmp_path, monkeypatch, option, value):
    monkeypatch.chdir(tmp_path)
    one_line(run("demo", option, value), option)
    assert os.listdir(tmp_path) == []


def test_demo_says_what_was_left_out(run, tmp_path):
    for name in ("0.png", "1.png", "notes.txt"):
        Image.new("RGB", (64, 48)).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("two pictures")
    code, _, err = run("demo", tmp_path)
    assert code == 0
    assert "left out of the directory: 1 file of another kind (notes.txt)" in err
