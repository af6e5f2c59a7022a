"""metrics.jsonl: appended lines, the lines that a continued run drops, and missing TensorBoard."""

from __future__ import annotations

import json
import sys

import pytest

from timeviper_fast.training.metrics import MetricsLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_with_phase_step_and_kind(tmp_path):
    for _ in range(2):
        log = MetricsLog(tmp_path / "run")
        log.write("a", 3, "train", {"loss": 1.5})
        log.close()
    assert lines(log.path) == [{"phase": "a", "step": 3, "kind": "train", "loss": 1.5}] * 2


def test_a_continued_run_drops_the_later_lines_of_its_phase_and_one_that_was_cut_off(tmp_path):
    log = MetricsLog(tmp_path)
    for phase, step in (("a", 9), ("b", 2), ("b", 3), ("b", 4)):
        log.write(phase, step, "train", {})
    with log.path.open("a") as file:
        file.write('{"phase": "b", "st')
    log.forget_behind("b", 3)
    assert [(line["phase"], line["step"]) for line in lines(log.path)] == [
        ("a", 9),
        ("b", 2),
        ("b", 3),
    ]


def test_tensorboard_is_asked_for_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"tensorboard must be False without the package"):
        MetricsLog(tmp_path, tensorboard=True)


def test_tensorboard_gets_every_figure(tmp_path, monkeypatch):
    """A stub replaces SummaryWriter; the test checks the calls that it receives."""
    written = []

    class Writer:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, *given):
            written.append(given)

        def close(self):
            written.append("closed")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = MetricsLog(tmp_path, tensorboard=True)
    log.write("a", 7, "train", {"loss": 1.0, "samples": 2})
    log.close()
    assert written == [
        str(tmp_path / "tensorboard"),
        ("a/train/loss", 1.0, 7),
        ("a/train/samples", 2, 7),
        "closed",
    ]
