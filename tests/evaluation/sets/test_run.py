"""A run: one session for each video, a line for each answer, resumed as if it had never stopped."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.evaluation.sets.common import world
from tests.random_model import tiny_model
from timeviper_fast.evaluation.evidence_score import judge_evidence
from timeviper_fast.evaluation.sets.prompts import asked
from timeviper_fast.evaluation.sets.run import SaidFile, run_eval
from timeviper_fast.inference.session import Session
from timeviper_fast.timeviper import TimeViper

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return world(tmp_path_factory.mktemp("set"), videos=2, questions=2, frames=8)


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
    with pytest.raises(ValueError, match="out must hold rows of the same questions"):
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
    assert found["errors"] == {broken[0]["error"]: 2}
    videos[1].write_bytes(whole)
    found = run_eval(model, rows, tmp_path / "out", max_new_tokens=1)
    assert (found["answered"], found["failed"], found["missing"]) == (4, 2, 0)
    # a mended video is asked again on request, and nothing else is
    videos[0].write_bytes(whole)
    assert run_eval(model, rows, tmp_path / "out", max_new_tokens=1)["failed"] == 2
    before = [line for line in lines(tmp_path / "out") if not line["error"]]
    found = run_eval(model, rows, tmp_path / "out", max_new_tokens=1, retry=True)
    assert (found["answered"], found["failed"], found["errors"]) == (6, 0, {})
    assert lines(tmp_path / "out")[:4] == before


@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError])
def test_a_question_that_does_not_fit_is_a_line(model, rows, tmp_path, monkeypatch, error):
    own = Session.ask

    def ask(session, prompt, **options):
        if rows[0].question in prompt:
            raise error("the question does not fit the window")
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


def test_prompts_show_what_is_spoken_while_the_frames_are_shown(model, rows, tmp_path, monkeypatch):
    """Frames at 0, 1, ... 7 seconds; the video starts at 100 s of the subtitles."""
    prompts, own = {}, Session.ask
    monkeypatch.setattr(
        Session, "ask", lambda s, prompt, **o: prompts.setdefault(prompt) or own(s, prompt, **o)
    )
    subtitles = tmp_path / "boat.json"
    subtitles.write_text(
        '[{"timestamp": [102.5, 103.5], "text": "a boat"},'
        ' {"timestamp": [3, 5], "text": "too early"}, {"timestamp": [120, 130], "text": "late"}]'
    )
    one, *others = rows
    rows = [replace(one, subtitles=subtitles, subtitles_start=100.0), *others]
    options = {"max_new_tokens": 1, "subtitles": True}
    found = run_eval(model, rows, tmp_path / "out", **options)
    assert (found["with_subtitles"], found["questions"]) == (1, 4)
    plain = {asked(row, "paper", 8.0, 8).prompt for row in others}
    first = "This video's subtitles are listed below:\na boat\n" + asked(one, "paper", 8, 8).prompt
    assert set(prompts) == {first, *plain}
    with pytest.raises(ValueError, match=r"out must hold rows of the same subtitles \(false\)"):
        run_eval(model, rows, tmp_path / "out", max_new_tokens=1)
    with pytest.raises(ValueError, match="subtitles must be left out for rows without"):
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


class Command:
    """`timeviper-fast eval` about a set, in a process of its own."""

    def __init__(self, folder, out):
        self.answers = out / "answers.jsonl"
        words = ["eval", "mlvu", folder, "--out", out, "--style", "question", "-q"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "timeviper_fast", *map(str, words), "--max-new-tokens", "16"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            # a run in the background ignores SIGINT, and its children would too
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def end(self):
        """Wait for the end: exit code and standard error."""
        return self.process.wait(600), self.process.stderr.read()

    def stop(self, count, by):
        """Send a signal once there are so many answers; then as `end`."""
        try:
            deadline = time.monotonic() + 300
            while not self.answers.exists() or self.answers.read_bytes().count(b"\n") < count:
                assert self.process.poll() is None, self.end()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            self.process.send_signal(by)
            return self.end()
        finally:
            self.process.kill()


@pytest.mark.long
def test_a_run_interrupted_twice_equals_one_that_was_not(tmp_path):
    """The command line and the embedded model, with 60 questions about 12 videos of the synthetic
    world: killed, continued, interrupted by Ctrl-C, and continued to the end."""
    assert len(world(tmp_path / "set", videos=12, questions=5, frames=64)) == 60
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert Command(tmp_path / "set", whole).end() == (0, "")
    stops = (
        (7, signal.SIGKILL, (-signal.SIGKILL, "")),
        (31, signal.SIGINT, (130, "timeviper-fast: interrupted\n")),
    )
    for count, by, ended in stops:
        assert Command(tmp_path / "set", parts).stop(count, by) == ended
        assert count <= (parts / "answers.jsonl").read_bytes().count(b"\n") < 60
        assert not (parts / "scores.json").exists()
        with (parts / "answers.jsonl").open("a") as file:
            file.write('{"id": "1_wor')  # a line that the kill cuts off
    assert Command(tmp_path / "set", parts).end() == (0, "")
    assert lines(parts) == lines(whole)
    scores = json.loads((parts / "scores.json").read_text())
    assert scores == json.loads((whole / "scores.json").read_text())
    assert (scores["answered"], scores["failed"], scores["missing"]) == (60, 0, 0)
    # well above chance: most questions have three candidates or more
    assert scores["rules"]["strict"]["micro"]["interval"][0] > 1 / 3


def test_other_numbers_or_prompts_are_another_run(model, rows, tmp_path):
    run_eval(model, rows, tmp_path, max_new_tokens=1)
    with pytest.raises(ValueError, match="out must hold rows of the same questions"):
        run_eval(model, [replace(rows[0], duration=9.0), *rows[1:]], tmp_path, max_new_tokens=1)
    narrow = copy.deepcopy(model).bfloat16()
    run_eval(narrow, rows[:1], tmp_path / "narrow", max_new_tokens=1)
    with pytest.raises(ValueError, match=r'rows of the same dtype \("float32"\), got "bfloat16"'):
        run_eval(narrow.float(), rows[:1], tmp_path / "narrow", max_new_tokens=1)


def test_a_length_is_said_once(model, rows, tmp_path, monkeypatch):
    """By the prompt of grounding; other prompts leave it to the model."""
    given, own = [], Session.ask

    def ask(session, prompt, **options):
        given.append(options["mention_duration"])
        return own(session, prompt, **options)

    monkeypatch.setattr(Session, "ask", ask)
    spans = [replace(row, options=(), answer=(1.0, 2.0)) for row in rows[:1]]
    for style, some in (("paper", rows[:1]), ("paper", spans), ("question", spans)):
        run_eval(model, some, tmp_path / f"{len(given)}", max_new_tokens=1, style=style)
    assert given == [None, False, None]
