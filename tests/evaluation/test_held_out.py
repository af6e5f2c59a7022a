"""Each set changes what its name says, and differences are taken from the drawn set."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.evaluation.common import random_model
from tests.evaluation.test_figures import row
from timeviper_fast.evaluation.held_out import SETS, HeldOutPlan, compare, run_held_out
from timeviper_fast.evaluation.rows import Row
from timeviper_fast.synthetic import pool as pool_module
from timeviper_fast.synthetic.pool import PoolSize
from timeviper_fast.synthetic.wordings import HELD_OUT_WORDINGS, WORDINGS

PLAN = HeldOutPlan(
    frames=(40,), other_frames=(33,), videos=1, tasks=("sign",), pool=PoolSize(40, 1, 1, 1)
)


def test_every_set_is_asked_and_a_second_run_asks_nothing(tmp_path, monkeypatch):
    needles = [n for n in pool_module.every_needle() if n.kind != "link"]
    monkeypatch.setattr(pool_module, "every_needle", lambda: needles)
    seeds, encode = [], pool_module.FramePool.encode.__func__
    note = lambda cls, world, *rest: seeds.append(world.seed) or encode(cls, world, *rest)  # noqa: E731
    monkeypatch.setattr(pool_module.FramePool, "encode", classmethod(note))
    monkeypatch.setattr("timeviper_fast.evaluation.synthetic.draw_scene", scene)
    model = random_model()
    found = run_held_out(model, model.tokenizer, PLAN, tmp_path)
    assert seeds[0] == 1 != seeds[1]
    assert json.loads((tmp_path / "held_out.json").read_text())["sets"] == json.loads(
        json.dumps(found["sets"])
    )
    asked = {name: rows_of(tmp_path / name) for name in SETS}
    for name, rows in asked.items():
        assert {r.frames for r in rows} == ({33} if name in ("sizes", "all") else {40})
        known = HELD_OUT_WORDINGS if name in ("wordings", "all") else WORDINGS
        assert all(r.question in known["sign"] for r in rows)
    assert [r.truth for r in asked["drawn"]] == [r.truth for r in asked["wordings"]]
    calls = []
    again = run_held_out(
        model, model.tokenizer, PLAN, tmp_path, progress=lambda *c: calls.append(c)
    )
    assert (again["sets"], calls) == (found["sets"], [])
    # before any frame is rendered
    monkeypatch.setattr(pool_module.FramePool, "encode", None)
    with pytest.raises(ValueError, match="out must hold rows of the same trained_seed"):
        run_held_out(model, model.tokenizer, replace(PLAN, trained_seed=5), tmp_path)
    with pytest.raises(ValueError, match="out must hold rows of the same"):
        run_held_out(model, model.tokenizer, replace(PLAN, stages="content:0.5,own"), tmp_path)


def scene(seed, frames, depths, *, held_out=False):
    """A scene without decoys and links, which the small pool does not have."""
    from timeviper_fast.synthetic.needle import Needle
    from timeviper_fast.synthetic.questions import Puzzle, Question

    text = (HELD_OUT_WORDINGS if held_out else WORDINGS)["sign"][seed % 3]
    answer = "ABCDEFGH"[seed % 8] + "7"
    return Puzzle(frames, {5: Needle("sign", answer)}, (Question("sign", text, answer, (5,)),))


def rows_of(folder):
    lines = map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    return [Row(**line) for line in lines]


def test_differences():
    """90 of 100 signs are right as drawn, 80 of 100 in other wordings, 96 of 100 at other sizes."""

    def answers(right):
        return [row(video=i, right=i < right) for i in range(100)]

    rows = {"drawn": answers(90), "wordings": answers(80), "sizes": answers(96)}
    found = {(line["set"], line["task"]): line for line in compare(rows, 3.0)}
    assert len(found) == 6
    worse, better = found["wordings", "sign"], found["sizes", "all"]
    assert worse["difference"] == pytest.approx(-10)
    # From Wilson's intervals (0.7112, 0.8666) of 80/100 and (0.8256, 0.9448) of 90/100:
    # -0.1 - sqrt(0.0888^2 + 0.0448^2), and -0.1 + sqrt(0.0666^2 + 0.0744^2)
    assert worse["difference_interval"] == pytest.approx((-19.95, -0.015), abs=0.02)
    assert (worse["holds"], better["holds"], found["drawn", "all"]["holds"]) == (False, True, True)
    assert (better["right"], better["n"]) == (96, 100)
    assert compare(rows, 10.0)[2]["holds"]


def test_sets_that_are_not_held_out_are_refused():
    with pytest.raises(ValueError, match="seed must differ from the seed of training, got 1"):
        HeldOutPlan(seed=1)
    with pytest.raises(ValueError, match=r"other_frames must be lengths .*got \[512\]"):
        HeldOutPlan(other_frames=(512,))


def test_a_model_of_larger_pictures_is_refused(tmp_path):
    model = random_model("tiny")
    with pytest.raises(ValueError, match=r"model must see pictures of 48 pixels, .*got 98"):
        run_held_out(model, model.tokenizer, PLAN, tmp_path)
    assert list(tmp_path.iterdir()) == []
