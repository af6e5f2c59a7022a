"""The command index: one file per video, kept where it fits, and videos that fail are reported."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from PIL import Image

from tests.cli.common import one_line
from timeviper_fast import TimeViper

OPTIONS = ("--sample", "fps:1", "--chunk", 64)


@pytest.fixture
def library(run, home, tmp_path):
    folder = tmp_path / "library"
    code, out, err = run(
        "index", home / "video.mp4", "--into", folder, "--model", home / "model", *OPTIONS
    )
    assert (code, out) == (0, ""), err
    return folder


def test_a_video_becomes_a_session(run, home, library):
    path = library / "video.mp4.session"
    assert os.listdir(library) == [path.name]
    model = TimeViper.from_pretrained(home / "model")
    session = model.load_session(path)
    want = model.ask(home / "video.mp4", "Why?", policy="fps:1", chunk=64, max_new_tokens=3)
    assert session.ask("Why?", max_new_tokens=3).text == want.text
    ask = ("ask", path, "Why?", "--model", home / "model", "--max-new-tokens", 3, "-q")
    assert run(*ask)[:2] == (0, want.text + "\n")


def test_files_that_fit_are_kept_and_others_refused(run, home, library):
    path = library / "video.mp4.session"
    before = path.stat().st_mtime_ns, path.stat().st_ino

    def again(*options):
        options = ("--into", library, "--model", home / "model", *OPTIONS, *options)
        return run("index", home / "video.mp4", *options)

    code, _, err = again()
    assert code == 0
    assert "video.mp4.session: it is there already" in err
    for options, words in (
        (("--sample", "fps:2"), "must fit this model, video and options, got one with "
         "policy='fps:1', not 'fps:2'; --overwrite replaces it"),
        (("--stages", "none"), "got other stages"),
        (("--dtype", "bfloat16"), "got another dtype"),
        (("--lead", "Look:"), "got one with lead='', not 'Look:'"),
    ):  # fmt: skip
        code, _, err = again(*options)
        assert code == 2
        assert words in " ".join(err.split())
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = again()
    assert (code, "got a file that is damaged or of another kind" in err) == (2, True)
    assert again("--overwrite", "--stages", "none")[0] == 0
    assert TimeViper.from_pretrained(home / "model").load_session(path).stages == ()


def test_a_directory_that_grew_is_another_video(run, home, tmp_path):
    images, library = tmp_path / "images", tmp_path / "library"
    images.mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (48, 48)).save(images / name)
        code, _, err = run("index", images, "--into", library, "--model", home / "model")
        words = {"1.png": "images.session: 1 frames", "2.png": "got one of a video of"}[name]
        assert (code, words in err) == (2 * (name == "2.png"), True), err


def test_a_video_written_anew_is_another_one_of_as_many_bytes(run, home, tmp_path):
    image, library = tmp_path / "one.bmp", tmp_path / "library"
    said = []
    for colour in ("red", "blue"):
        Image.new("RGB", (48, 48), colour).save(image)
        if colour == "blue":
            # the clock of a file system may be coarse
            later = image.stat().st_mtime_ns + 10**9
            os.utime(image, ns=(later, later))
        code, _, err = run("index", image, "--into", library, "--model", home / "model")
        said.append((code, "got one that is older than the video" in " ".join(err.split())))
    assert said == [(0, False), (2, True)]


def test_a_video_that_fails_is_reported_and_the_others_are_read(run, home, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    shutil.copy(home / "video.mp4", tmp_path / "good.mp4")
    videos = (tmp_path / "broken.mp4", tmp_path / "absent.mp4", tmp_path / "good.mp4")
    code, _, err = run("index", *videos, "--into", tmp_path / "new" / "to", *OPTIONS)
    assert code == 2
    for name in ("broken.mp4", "absent.mp4"):
        assert sum(line.startswith(f"{tmp_path / name}: ") for line in err.splitlines()) == 1
    assert os.listdir(tmp_path / "new" / "to") == ["good.mp4.session"]
    assert "6 frames" in err


def test_mistakes(run, home, tmp_path):
    shutil.copy(home / "video.mp4", tmp_path / "video.mp4")
    two = ("index", home / "video.mp4", tmp_path / "video.mp4", "--into", tmp_path / "x")
    one_line(run(*two), "VIDEO must have different names: both would be", "video.mp4 and ")
    one_line(run("index", "-", "--into", tmp_path), "VIDEO must have a name")
    into = run("index", home / "video.mp4", "--into", home / "video.mp4")
    one_line(into, "--into must be a directory or the name of a new one")
    one_line(run("index", home / "video.mp4", "--into", tmp_path, "--sample", "x"), "--sample")
    one_line(run("index", home / "video.mp4", "--into", tmp_path, "--model", "x"), "--model must")
    assert not (tmp_path / "x").exists()


def test_features_are_asked_with_other_stages(run, home, tmp_path):
    options = ("--into", tmp_path, "--model", home / "model", "--level", "features")
    index = ("index", home / "video.mp4", *options, "--sample", "fps:1")
    for words in ("6 frames, 0.0 MB", "it is there already"):
        code, _, err = run(*index)
        assert (code, words in err) == (0, True), err
    path = tmp_path / "video.mp4.features"
    ask = ("--model", home / "model", "--stages", "none", "--max-new-tokens", 3, "-q")
    code, out, _ = run("ask", path, "Why?", *ask)
    assert code == 0
    assert out == run("ask", home / "video.mp4", "Why?", "--sample", "fps:1", *ask)[1]
    one_line(run("ask", path, "Why?", "--sample", "fps:1"), "--sample must be left out for")
    one_line(run(*index, "--lead", "Look:"), "--lead must be left out with --level features")
    _, out, _ = run("session", "list", tmp_path, "--json")
    (told,) = json.loads(out)
    assert (told["level"], told["state"], told["frames"]) == ("features", "whole", 6)
