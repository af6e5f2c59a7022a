"""`timeviper-fast held-out`: its plan, its table and JSON, its exit code, and mistakes."""

from __future__ import annotations

import json

import pytest

from tests.cli.common import one_line
from tests.evaluation.common import random_model
from timeviper_fast.evaluation import held_out


@pytest.fixture
def words(tmp_path):
    random_model().save_pretrained(tmp_path / "model")
    return ["held-out", "--model", tmp_path / "model", "--out", tmp_path / "out", "-q"]


def test_the_plan_is_what_the_options_say_and_a_loss_is_exit_code_1(run, words, monkeypatch):
    """tests/evaluation covers the questions themselves."""
    asked, holds = [], [True]

    def run_held_out(model, tokenizer, plan, out, *, progress):
        asked.append(plan)
        line = {"set": "drawn", "task": "all", "right": 9, "n": 10, "difference": -0.5}
        return {"sets": [{**line, "holds": holds[0]}]}

    monkeypatch.setattr(held_out, "run_held_out", run_held_out)
    words += [
        "--frames",
        "50,60",
        "--other-frames",
        "40,99",
        "--videos",
        2,
        "--tasks",
        "sign",
        "--pool",
        99,
        "--points",
        2,
    ]
    code, out, _ = run(*words)
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["drawn", "all"]
    assert "9/10" in out
    assert "-0.5" in out
    (plan,) = asked
    assert (plan.frames, plan.videos, plan.tasks) == ((50, 60), 2, ("sign",))
    assert (plan.pool.plain, plan.points) == (99, 2)
    holds[0] = False
    code, out, _ = run(*words, "--json")
    assert code == 1
    assert json.loads(out)["sets"][0]["n"] == 10


def test_mistakes_are_one_line(run, words):
    one_line(run(*words, "--frames", "x"), "--frames must be numbers with commas between them")
    one_line(run(*words, "--seed", 1), "--seed must differ from the seed of training, got 1")
    one_line(run(*words, "--other-frames", 128), "--other-frames must be lengths")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--tasks", "foo"), "--tasks must be different ones of sign"),
        (("--level", "soft"), "--level must be one of study, hard"),
        (("--frames", ""), "--frames must be integers of 32 or more, got []"),
        (("--other-frames", "31"), "--other-frames must be integers of 32 or more, got [31]"),
        (("--pool", 50), "--pool must have the longest video's 3,000 frames, got 50"),
        (("--points", "inf"), "--points must be a finite number of 0 or more, got inf"),
        (("--out", __file__), "--out must be a directory or the name of a new one"),
        (("--model", "nomodel"), "--model must be"),
    ],
)
def test_nothing_is_rendered_for_a_mistake(run, words, monkeypatch, given, said):
    monkeypatch.setattr(held_out.FramePool, "encode", None)
    one_line(run(*words, *given), said)
