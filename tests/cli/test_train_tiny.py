"""`timeviper-fast train-tiny`: its plan, its lines, and mistakes in one line."""

from __future__ import annotations

from tests.cli.common import one_line
from timeviper_fast.synthetic import tiny


def test_the_plan_is_what_the_options_say(run, monkeypatch, tmp_path):
    """tests/synthetic covers the training itself."""
    asked = []

    def train_tiny(folder, plan, *, on_vision, progress):
        asked.append((folder, plan))
        on_vision({"step": 3, "loss": 1.0, "study": {"second": 0.25, "false": 0.5}})
        return tmp_path / "model"

    monkeypatch.setattr(tiny, "train_tiny", train_tiny)
    code, out, err = run("train-tiny", tmp_path, "--steps", 3, "--seed", 5)
    assert code == 0
    assert out.strip() == str(tmp_path / "model")
    assert "vision 3/3 loss 1.000 glyphs wrong 25.00 %, plain frames 50.00 %" in err
    assert asked == [(str(tmp_path), tiny.TinyPlan.short(3, 5))]


def test_a_file_in_place_of_the_folder_is_one_line(run, tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"...")
    rule = "folder must be a directory or the name of a new one, got"
    one_line(run("train-tiny", film), f"{rule} {film}, a file")
    one_line(run("train-tiny", film / "run"), f"{rule} {film}/run, where {film} is a file")
    assert film.read_bytes() == b"..."


def test_a_folder_of_other_files_is_one_line(run, tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"...")
    rule = "folder must be new or empty, or the folder of a run that stopped, got"
    one_line(run("train-tiny", tmp_path, "--steps", 1), f"{rule} {tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_no_steps_are_one_line(run, tmp_path):
    one_line(run("train-tiny", tmp_path, "--steps", 0), "'--steps'", "greater than or equal to 1")
