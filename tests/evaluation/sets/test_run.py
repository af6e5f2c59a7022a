"""A run: one session for each video, a line for each answer, resumed as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from tests.evaluation.sets.common import world
from tests.random_model import tiny_model
from timeviper_fast.embedded.models import TINY
from timeviper_fast.evaluation.evidence_score import judge_evidence
from timeviper_fast.evaluation.sets.prompts import asked
from timeviper_fast.evaluation.sets.run import SaidFile, run_eval
from timeviper_fast.inference.session import Session
from timeviper_fast.timeviper import TimeViper


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return world(tmp_path_factory.mktemp("set"), videos=2, questions=2, frames=8)


class Stop:
    """Interrupts a run behind its n-th line."""

    def __init__(self, lines):
        self.lines = lines

    def __call__(self, what, done, total):
        if done >= self.lines:
            raise KeyboardInterrupt


class Opened:
    """Counts the videos that a model opens."""

    def __init__(self, monkeypatch):
        self.count, own = 0, TimeViper.open

        def counting(model, *arguments, **options):
            self.count += 1
            return own(model, *arguments, **options)

        monkeypatch.setattr(TimeViper, "open", counting)


def lines(folder):
    """The answers without the times."""
    told = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in told]


def test_a_video_is_opened_once_and_answers_equal_those_of_ask(model, rows, tmp_path, monkeypatch):
    opened, calls = Opened(monkeypatch), []
    options = {"max_new_tokens": 3, "policy": "uniform:4"}
    found = run_eval(model, rows, tmp_path, progress=lambda *a: calls.append(a), **options)
    assert opened.count == 2
    assert calls == [("questions", i, 4) for i in range(1, 5)]
    assert (found["answered"], found["questions"], found["failed"]) == (4, 4, 0)
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(found))
    said = {line["id"]: line for line in lines(tmp_path)}
    for row in rows:
        prompt = "\n".join(
            [
                row.question,
                *row.options,
                "Please provide your answer by stating the letter followed by the full option.",
            ]
        )
        answer = model.ask(row.video, prompt, answer_prefix="Best Option: (", **options)
        assert said[row.id]["answer"] == answer.text
        assert said[row.id]["truth"] == row.answer
    # nothing is left to do, and other settings are refused
    run_eval(model, rows, tmp_path, **options)
    assert opened.count == 2
    with pytest.raises(
        ValueError, match=r"eval: out must hold rows of the same style \(.letter.\)"
    ):
        run_eval(model, rows, tmp_path, style="letter", **options)
    with pytest.raises(ValueError, match="out must hold rows of the same rows"):
        run_eval(model, rows[1:], tmp_path, **options)


def test_a_broken_video_is_a_line_and_a_missing_one_waits(model, tmp_path):
    rows = world(tmp_path / "set", videos=3, questions=2, frames=8)
    videos = sorted({row.video for row in rows})
    videos[0].write_bytes(b"no array")
    whole = videos[1].read_bytes()
    videos[1].unlink()
    found = run_eval(model, rows, tmp_path / "out", max_new_tokens=1)
    assert (found["questions"], found["answered"]) == (6, 2)
    assert (found["failed"], found["missing"]) == (2, 2)
    broken = [line for line in lines(tmp_path / "out") if line["error"]]
    assert {line["video"] for line in broken} == {str(videos[0])}
    assert all(line["answer"] == "" and "0.npy" in line["error"] for line in broken)
    videos[1].write_bytes(whole)
    found = run_eval(model, rows, tmp_path / "out", max_new_tokens=1)
    assert (found["answered"], found["failed"], found["missing"]) == (4, 2, 0)


def test_a_question_that_does_not_fit_is_a_line(model, rows, tmp_path, monkeypatch):
    own = Session.ask

    def ask(session, prompt, **options):
        if rows[0].question in prompt:
            raise ValueError("the question does not fit the window")
        return own(session, prompt, **options)

    monkeypatch.setattr(Session, "ask", ask)
    found = run_eval(model, rows, tmp_path, max_new_tokens=1)
    assert (found["answered"], found["failed"]) == (3, 1)
    assert "the question does not fit the window" in [line["error"] for line in lines(tmp_path)]


def test_evidence_is_scored_where_a_row_has_a_span(model, rows, tmp_path):
    """Equal to the evidence of `ask` against the same spans; a control for each video."""
    one, two, *others = rows
    rows = [replace(one, spans=((1.0, 3.0),)), replace(two, spans=((0.0, 0.0),)), *others]
    options = {"max_new_tokens": 1, "evidence": True}
    found = run_eval(model, rows, tmp_path, **options)["evidence"]
    neutral = model.ask(one.video, "Describe the video.", max_new_tokens=1).evidence
    prompt = asked(one, "paper", 8.0, 8)
    looked = model.ask(one.video, prompt.prompt, answer_prefix=prompt.answer_prefix).evidence
    held = {line["id"]: line["evidence"] for line in lines(tmp_path)}
    assert held[one.id] == json.loads(
        json.dumps({n: asdict(p) for n, p in judge_evidence(looked, neutral, {1, 2}).items()})
    )
    assert held[one.id]["question"]["by_chance"][2] == 2 / 8
    assert [held[row.id] for row in others] == [None, None]
    assert found["all"]["question"]["top1"]["n"] == 2
    tasks = {f"task {row.groups['task'][0]}" for row in (one, two)}
    assert set(found) == {"all", *tasks}
    # a run that goes on reads what is on disk
    assert run_eval(model, rows, tmp_path, **options)["evidence"] == found
    with pytest.raises(ValueError, match=r"out must hold rows of the same evidence \(false\)"):
        run_eval(model, rows, tmp_path, max_new_tokens=1)
    with pytest.raises(ValueError, match="evidence must be left out for rows without true spans"):
        run_eval(model, others, tmp_path / "new", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": "often"}, "policy must"),
        ({"style": "cot"}, "style must be one of"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive number of tokens"),
        ({"rows": []}, "rows must be one or more"),
    ],
)
def test_bad_arguments_raise_and_write_nothing(model, rows, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        run_eval(model, options.pop("rows", rows), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(
        ValueError, match=r"out must hold rows of an eval run, got answers\.jsonl:1"
    ):
        SaidFile(tmp_path / "answers.jsonl")


@pytest.mark.long
def test_a_run_interrupted_twice_equals_one_that_was_not(tmp_path, monkeypatch):
    """The embedded model, 60 questions about 12 videos of the synthetic world."""
    model = TimeViper.from_pretrained(TINY)
    rows = world(tmp_path / "set", videos=12, questions=5, frames=64)
    assert len(rows) == 60
    options = {"style": "question", "max_new_tokens": 16}
    opened = Opened(monkeypatch)
    whole = run_eval(model, rows, tmp_path / "whole", **options)
    assert opened.count == 12
    for stop in (7, 31):
        with pytest.raises(KeyboardInterrupt):
            run_eval(model, rows, tmp_path / "parts", progress=Stop(stop), **options)
        with (tmp_path / "parts/answers.jsonl").open("a") as file:
            file.write('{"id": "1_wor')  # a line that was cut off by the kill
    assert run_eval(model, rows, tmp_path / "parts", **options) == whole
    # a video whose questions were interrupted is opened again
    assert 24 <= opened.count <= 26
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert (whole["answered"], whole["failed"], whole["missing"]) == (60, 0, 0)
    # well above chance: most questions have three candidates or more
    assert whole["rules"]["strict"]["micro"]["interval"][0] > 1 / 3
