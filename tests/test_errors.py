"""Errors carry the argument that they speak of, and survive a trip to another process."""

from __future__ import annotations

import builtins
import os
import pickle

import pytest

from timeviper_fast.errors import (
    ArgumentError,
    CheckpointError,
    NotBuilt,
    VideoError,
    expect_folder,
    expect_matplotlib,
    fail,
)
from timeviper_fast.video.sampling import parse_policy


def test_an_error_is_a_sentence_and_its_parts():
    with pytest.raises(ValueError, match=r"^ask: chunk must be positive, got '0'; try 8192$") as it:
        fail("ask", "chunk", "be positive", "0", "try 8192")
    error = it.value
    assert isinstance(error, ArgumentError)
    assert (error.owner, error.argument, error.rule) == ("ask", "chunk", "be positive")
    assert error.with_name("--chunk") == "--chunk must be positive, got '0'; try 8192"


def test_the_part_of_an_argument_stays_when_its_name_changes():
    with pytest.raises(ArgumentError) as it:
        parse_policy("fps:1:most=2")
    assert it.value.argument == "policy"
    assert it.value.with_name("--sample").startswith(
        "--sample 'fps:1:most=2': option must be one of"
    )


def test_a_folder_is_where_no_file_is(tmp_path):
    film = tmp_path / "film.mp4"
    film.touch()
    expect_folder("run", "out", tmp_path)
    expect_folder("run", "out", tmp_path / "new" / "newer")
    for path, got in ((film, "a file"), (film / "new", f"where {film} is a file")):
        with pytest.raises(ArgumentError) as it:
            expect_folder("run", "out", path)
        rule = "out must be a directory or the name of a new one"
        assert str(it.value) == f"run: {rule}, got {path}, {got}"


def test_a_folder_of_results_can_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    rule = "run: out must be a directory that can be written to, got"
    with pytest.raises(ArgumentError) as it:
        expect_folder("run", "out", tmp_path)
    assert str(it.value) == f"{rule} {tmp_path}"
    with pytest.raises(ArgumentError) as it:
        expect_folder("run", "out", tmp_path / "new/newer")
    assert str(it.value) == f"{rule} {tmp_path}/new/newer, where {tmp_path} is read-only"


@pytest.mark.parametrize(
    "error",
    [
        ArgumentError("ask", "chunk", "be positive", 0, "try 8192", " of tokens"),
        CheckpointError("load_weights", "file", "be readable", "x"),
        NotBuilt("upstream", "vision", "be one of a, b", "'c'"),
        VideoError("x.mp4: it ends early", "on_error", "on_error='use' takes the rest"),
    ],
)
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_without_matplotlib_a_figure_is_refused(monkeypatch):
    imported = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"matplotlib must be installed.*\[evaluation\]"):
        expect_matplotlib("figures", "evaluation")
