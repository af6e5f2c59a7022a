"""`timeviper-fast needle`: its table, files and JSON; a continued run; mistakes."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tests.cli.common import one_line
from tests.evaluation.common import random_model
from timeviper_fast.synthetic import pool


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("needle") / "model"
    random_model().save_pretrained(path)
    return path


@pytest.fixture
def small(monkeypatch):
    """Pools with one frame per needle."""
    monkeypatch.setattr(pool.PoolSize, "copies", lambda self, needle: 1)


def test_a_table_with_intervals_and_files(run, model, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["needle", "--model", model, "--frames", "40", "--depths", 3, "--videos", 1]
    words += ["--tasks", "sign,colour", "--pool", 40, "--max-new-tokens", 1, "--no-figures"]
    code, out, err = run(*words)
    assert code == 0, err
    header, *lines = out.splitlines()
    assert header.split() == [
        "frames",
        "task",
        "control",
        "keep",
        "right",
        "needed",
        "frames",
        "kept",
        "found",
    ]
    assert [line.split()[1] for line in lines] == ["colour", "sign"]
    assert all("0/1" in line and "[0.0, 79.3]" in line for line in lines)
    assert "pool of 40 frames" in err
    rows = (tmp_path / "needles/rows.jsonl").read_text()
    code, again, _ = run(*words, "--json")
    assert (tmp_path / "needles/rows.jsonl").read_text() == rows
    assert [r["answers"]["n"] for r in json.loads(again)["results"]] == [1, 1]
    # before the pool is rendered
    monkeypatch.setattr(pool.FramePool, "encode", None)
    one_line(run(*words, "--seed", 2), "--out must hold rows of the same seed (2), got 1000003")
    one_line(run(*words, "--level", "hard"), '--out must hold rows of the same world ("hard")')


def test_films(run, model, tmp_path):
    from PIL import Image

    np.save(
        tmp_path / "film.npy", np.random.default_rng(0).integers(0, 256, (9, 48, 48, 3), np.uint8)
    )
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    words = ["needle", tmp_path / "film.npy", "--model", model, "--needle", tmp_path / "red.png"]
    words += ["--question", "Which colour?", "--options", "red, blue", "--answer", "red"]
    words += ["--depths", 2, "--videos", 2, "--out", tmp_path / "out", "--no-figures", "-q"]
    code, out, err = run(*words, "--frames", "4,8", "--max-new-tokens", 1)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 3
    words += ["--frames", 4, "--form", "v-niah", "--out", tmp_path / "theirs", "--json"]
    told = json.loads(run(*words)[1])
    assert told["haystack"].startswith("in the form of v-niah; film.npy at 1 per second")
    one_line(run(*words, "--frames", 20), "must hold 20 frames", "got 9; 11 seconds")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--frames", "x"], "--frames must be numbers with commas between them, got 'x'"),
        (["--keep", "a"], "--keep must be numbers"),
        (["--keep", "2"], "--keep must lie in (0, 1], got 2.0"),
        (["--keep", "0.5,nan"], "--keep must lie in (0, 1], got nan"),
        (["--depths", 2], "--depths must be at least the number of tasks (3), got 2"),
        (
            ["film.mp4", "--needle", __file__, "--question", "?", "--answer", "!", "--fps", 0],
            "--fps must be",
        ),
        (
            ["--frames", "64", "--pool", 40],
            "--pool must have the longest video's 64 frames, got 40",
        ),
        (["--control", "deaf", "--pool", 40], "--control must be some of blind"),
        (["--tasks", "where"], "--tasks must be different ones of sign"),
        (["--form", "theirs"], "--form must be one of ours, v-niah, videochat-flash"),
        (["--form", "v-niah", "--pool", 40], "--pool must have the longest video's 3,000 frames"),
        (["--level", "soft"], "--level must be one of study, hard"),
        (["film.mp4"], "--needle must be given with video files"),
        (["--question", "?"], "--question must be given with --needle and an image"),
        (["--options", "a,b"], "--options must be given with --needle and an image"),
        (["--answer", "a"], "--answer must be given with --needle and an image"),
        (["f.mp4", "--needle", "a.json", "--answer", "a"], "--answer must be given with --needle"),
        (["f.mp4", "--tasks", "sign"], "--tasks must be given without video files, got 'sign'"),
        (["f.mp4", "--level", "hard"], "--level must be given without video files"),
        (["f.mp4", "--pool", 99], "--pool must be given without video files, got 99"),
        (["f.mp4", "--held-out"], "--held-out must be given without video files, got True"),
        (["--fps", 2], "--fps must be given with video files, got 2.0"),
        (["--frames", 20], "--frames must be at least 32, got 20"),
    ],
)
def test_mistakes_are_one_line(run, model, small, tmp_path, words, said, monkeypatch):
    given = ["needle", *words, "--model", model, "--no-figures", "--out", tmp_path / "out"]
    one_line(run(*given), said)
    # before any package that draws is looked for, and before a model is
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    one_line(run("needle", *words, "--model", tmp_path / "none", "--out", tmp_path / "out"), said)


def test_a_missing_package_is_said_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = ["needle", "--model", tmp_path / "none", "--out", tmp_path / "out"]
    one_line(run(*given), "matplotlib must be installed, got none; install")
    (tmp_path / "out").write_text("a file")
    one_line(run(*given), f"--out must be a directory or the name of a new one, got {tmp_path}/out")
