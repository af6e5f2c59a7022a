"""A run asks every cell once, continues after a stop, and runs its controls."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.evaluation.common import TASKS, haystack, random_model
from timeviper_fast.evaluation import needle as needle_module
from timeviper_fast.evaluation.needle import NeedlePlan, run_needles
from timeviper_fast.evaluation.rows import RowFile
from timeviper_fast.text.prompt import build_prompt

PLAN = NeedlePlan(frames=(40, 64), depths=4, videos=4, max_new_tokens=2)


def run(model, out, plan=PLAN, **options):
    return run_needles(model, model.tokenizer, haystack(model), plan, out, **options)


@pytest.fixture(scope="module")
def model():
    return random_model()


def test_every_cell_is_asked_as_often_as_another(model, tmp_path):
    calls = []
    rows = run(model, tmp_path / "new" / "out", progress=lambda *call: calls.append(call))
    cells = Counter((row.frames, row.task, row.depth) for row in rows)
    depths = (0, 1 / 3, 2 / 3, 1)
    assert cells == {(n, task, depth): 1 for n in (40, 64) for task in TASKS for depth in depths}
    assert calls[0] == ("answers", 1, 24)
    assert calls[-1] == ("answers", 24, 24)
    for row in rows:
        assert row.right == (row.answer == row.truth)
        assert 0 <= row.kept <= len(row.needed)
        assert row.seconds > 0 < row.video_seconds
        assert 0 <= row.found < row.frames
    lines = (tmp_path / "new" / "out" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["question"] for line in lines] == [row.question for row in rows]


def test_a_stopped_run_goes_on(model, tmp_path, monkeypatch):
    """No question is asked twice, and the answers equal those of an uninterrupted run."""
    whole = run(model, tmp_path / "whole")

    class StopError(Exception):
        pass

    def stop_at_seven(what, done, total):
        if done == 7:
            raise StopError

    with pytest.raises(StopError):
        run(model, tmp_path / "parts", progress=stop_at_seven)
    file = tmp_path / "parts" / "rows.jsonl"
    assert len(file.read_text().splitlines()) == 7
    file.write_bytes(file.read_bytes()[:-5])
    videos = []
    made = needle_module.read_front
    monkeypatch.setattr(
        needle_module, "read_front", lambda *a, **k: videos.append(1) or made(*a, **k)
    )
    rest = run(model, tmp_path / "parts")
    assert [(row.key, row.answer, row.needed, row.kept) for row in rest] == [
        (row.key, row.answer, row.needed, row.kept) for row in whole
    ]
    # six answers are two whole videos of three tasks
    assert len(videos) == 6


def test_a_longer_plan_takes_the_rows_that_are_there(model, tmp_path):
    short = NeedlePlan(frames=(40,), depths=3, videos=2, max_new_tokens=1)
    longer = NeedlePlan(frames=(64, 40), depths=3, videos=3, max_new_tokens=1)
    run(model, tmp_path, short)
    rows = run(model, tmp_path, longer)
    assert len(rows) == 2 * 3 * 3
    assert len({row.key for row in rows}) == len(rows)
    assert len(run(model, tmp_path, short)) == 6


def test_a_template_that_labels_frames_is_refused(model, tmp_path, monkeypatch):
    labelled = replace(model.config, template="nemotron_vl")
    monkeypatch.setattr(model, "config", labelled)
    with pytest.raises(ValueError, match="template must be one without labels of frames"):
        run(model, tmp_path)


def test_controls(model, tmp_path):
    controls = ("blind", "no-video", "needle-only", "uniform")
    plan = NeedlePlan(
        (64,), depths=4, videos=1, keeps=(0.1, 0.02), controls=controls, max_new_tokens=1
    )
    rows = run(model, tmp_path, plan)
    ways = Counter((row.control, row.keep) for row in rows)
    both = [("none", 0.1), ("none", 0.02), ("blind", 0.1), ("blind", 0.02)]
    both += [("uniform", 0.1), ("uniform", 0.02)]
    assert ways == dict.fromkeys([*both, ("no-video", 1.0), ("needle-only", 1.0)], 3)
    for row in rows:
        assert (row.kept is None) == (row.control in ("blind", "no-video", "needle-only"))
    # 5 of 256 tokens, evenly spaced: they lie in frames 0, 16, 31 or 32, 47 and 63
    for row in rows:
        if (row.control, row.keep, row.task) == ("uniform", 0.02, "sign"):
            assert row.kept == (row.depth in (0, 1))
    assert model.backbone.stages == model.config.stages
    assert model.config.stages[1].select == "attention"


def test_absent_things_are_asked_without_a_frame_that_answers(model, tmp_path):
    plan = NeedlePlan((40,), depths=3, videos=1, controls=("needle-only",), max_new_tokens=1)
    tasks = ("colour", "no-sign", "no-chain")
    rows = run_needles(model, model.tokenizer, haystack(model, tasks), plan, tmp_path)
    assert [(row.control, row.task) for row in rows] == [
        (control, task) for control in ("none", "needle-only") for task in tasks
    ]
    for row in rows:
        assert (row.needed == ()) == (row.task != "colour")
        assert (row.retained.n, row.timed.n) == (
            (1, 1) if row.needed and row.kept is not None else (0, 0)
        )


def test_the_frame_found_has_the_largest_score(model, tmp_path):
    """Without a stage in front, by one pass of the model over the prompt."""
    made = haystack(model, ("sign",))
    plan = NeedlePlan((40,), depths=1, videos=1, max_new_tokens=1)
    (row,) = run_needles(model, model.tokenizer, made, plan, tmp_path)
    trial = made.trial(40, 0, 0, (0.5,))
    prompt = build_prompt(model.tokenizer, trial.probes[0].question, vision=True)
    ids = [torch.tensor([part]) for part in (prompt.before, prompt.after)]
    with torch.no_grad():
        inside, segment = model.embed(ids[0], made.visual(trial), ids[1])
        _, records = model.backbone(inside, (segment,))
    first, second = (stage[0] for stage in records)
    token = first.kept[0][second.scores[0].argmax()]
    assert row.found == int(token) // 4


def test_evidence_is_scored_against_the_needed_frames(model, tmp_path):
    """Equal to the scores of one pass over each prompt, for rows that need a frame."""
    made = haystack(model, ("sign", "no-colour"))
    plan = NeedlePlan(
        (40,), depths=2, videos=1, controls=("blind",), max_new_tokens=1, evidence=True
    )
    rows = run_needles(model, model.tokenizer, made, plan, tmp_path)
    sign, *others = rows
    assert [row.evidence for row in others] == [None] * 3
    trial = made.trial(40, 0, 0, (0.0, 1.0))

    def looked(question):
        prompt = build_prompt(model.tokenizer, question, vision=True)
        ids = [torch.tensor([part]) for part in (prompt.before, prompt.after)]
        with torch.no_grad():
            inside, segment = model.embed(ids[0], made.visual(trial), ids[1])
            _, records = model.backbone(inside, (segment,))
        first, second = (stage[0] for stage in records)
        mass = torch.zeros(40).index_add_(0, first.kept[0] // 4, second.scores[0])
        return (mass / mass.sum())[list(sign.needed)].sum().item()

    for name, question in (("question", sign.question), ("control", "Describe the video.")):
        assert sign.evidence[name].mass == pytest.approx(looked(question), rel=1e-4)
        assert sign.evidence[name].by_chance[2] == 1 / 40
    assert RowFile(tmp_path / "rows.jsonl").rows == rows
    with pytest.raises(ValueError, match="out must hold rows of the same evidence"):
        run_needles(model, model.tokenizer, made, replace(plan, evidence=False), tmp_path)
    bare = random_model()
    bare.set_stages(())
    with pytest.raises(ValueError, match="evidence must be left out for a model without"):
        run_needles(bare, bare.tokenizer, made, plan, tmp_path / "new")


def test_what_is_asked_is_what_is_answered(model, tmp_path, monkeypatch):
    """The needed frames' tokens and the question reach the model; true answers are judged right."""

    def truth(self, read):
        return next(told)

    planned = haystack(model).trial(40, 0, 0, (0.0, 0.5, 1.0))
    told = iter([probe.truth for probe in planned.probes])
    monkeypatch.setattr(needle_module.Needles, "_say", truth)
    plan = NeedlePlan((40,), depths=3, videos=1)
    rows = run(model, tmp_path, plan)
    assert [row.right for row in rows] == [True] * 3
    assert [row.needed for row in rows] == [probe.needed for probe in planned.probes]


def test_other_settings_and_weights_are_refused(model, tmp_path):
    plan = NeedlePlan((40,), depths=3, videos=1, max_new_tokens=1)
    run(model, tmp_path, plan)
    other = random_model()
    other.backbone.lm_head.weight.data += 1e-3
    with pytest.raises(ValueError, match="out must hold rows of the same model"):
        run(other, tmp_path, plan)
    with pytest.raises(ValueError, match="out must hold rows of the same seed"):
        run(model, tmp_path, NeedlePlan((40,), depths=3, videos=1, seed=1, max_new_tokens=1))
    with pytest.raises(ValueError, match="depths must be at least the number of tasks"):
        run(model, tmp_path / "new", NeedlePlan((40,), depths=2, videos=1))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"frames": (8,)}, "frames must be integers of at least the number of depths"),
        ({"frames": ()}, "frames must be integers"),
        ({"videos": 0}, "videos must be an integer of 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of 1 or more"),
        ({"keeps": (0.5, 2.0)}, r"keeps must lie in \(0, 1\], got 2.0"),
        ({"controls": ("deaf",)}, "controls must be some of blind, .*, got 'deaf'"),
    ],
)
def test_a_plan_is_checked(options, match):
    with pytest.raises(ValueError, match=match):
        NeedlePlan(**options)
