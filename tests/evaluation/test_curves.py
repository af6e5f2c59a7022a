"""The curves of a run: points are means of the right lines, and the figure has its numbers."""

from __future__ import annotations

import json

import pytest

from timeviper_fast.evaluation.curves import draw_curves, read_curves


def _run(folder):
    """Logs of three steps of the encoder and of two phases with 3 and 2 lines."""
    (folder / "vision").mkdir()
    (folder / "language").mkdir()
    errors = {"first": 0.5, "second": 0.25, "false": 0.0}
    vision = [{"step": n, "loss": 1.0, "study": errors, "hard": errors} for n in (10, 20, 30)]
    language = [
        {"phase": phase, "step": step, "kind": kind, "loss": step, "sample_accuracy": step / 100,
         "token_accuracy": 0.5}
        for phase, step, kind in (
            ("short", 10, "train"), ("short", 20, "train"), ("short", 20, "evaluation"),
            ("short", 30, "train"), ("long", 10, "train"), ("long", 40, "train"),
        )
    ]  # fmt: skip
    for name, lines in (("vision/log", vision), ("language/metrics", language)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def test_points_are_means_of_training_lines_and_steps_go_on_through_phases(tmp_path):
    curves = read_curves(_run(tmp_path), window=2)
    assert [point["step"] for point in curves["vision"]] == [10, 20, 30]
    got = [(p["phase"], p["step"], p["steps"], p["loss"]) for p in curves["language"]]
    assert got == [("short", 20, 20, 15), ("short", 30, 30, 30), ("long", 40, 70, 25)]


def test_the_figure_has_its_numbers_beside_it(tmp_path):
    run, out = _run(tmp_path), tmp_path / "new" / "curves.png"
    draw_curves(run, out)
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads(out.with_suffix(".json").read_text()) == read_curves(run)


def test_a_folder_without_logs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder must hold the logs of a run of train_tiny"):
        read_curves(tmp_path)
