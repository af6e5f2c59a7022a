"""Every program in examples/ runs as a user starts it, and prints what it promises."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from timeviper_fast.training.config import read_config

EXAMPLES = Path(__file__).parents[2] / "examples"

# what each prints
PRINTS = {
    "ask.py": "before layer 2: 256 -> 128 vision tokens",
    "several_questions.py": "64 frames, read once",
    "ops_alone.py": "prefill and steps differ from one pass by at most",
    "patch_a_model.py": "tvkernels.mamba_chunk_scan_combined",
    "packed_loss.py": "step 3: loss",
    "ten_thousand_frames.py": "10 right\nten at once",
}
# fewer frames than ten thousand; no thread more than the other tests have
FEW = ("--frames", 64, "--threads", 1)


def run(monkeypatch, capsys, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_example(monkeypatch, capsys, name):
    few = FEW if name == "ten_thousand_frames.py" else ()
    assert PRINTS[name] in run(monkeypatch, capsys, name, *few)


def test_steps_on_the_packed_loss_lower_it(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "packed_loss.py", "--steps", 3).splitlines()
    losses = [float(line.split()[3].rstrip(",")) for line in lines]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3


def test_several_questions_answers_as_ask_does(monkeypatch, capsys, tmp_path):
    from timeviper_fast import TimeViper
    from timeviper_fast.demo import DemoVideo

    demo = DemoVideo(seed=2, seconds=32)
    video = demo.write(tmp_path / "video.mp4")
    questions = [question.text for question in demo.questions]
    model = TimeViper.from_pretrained("timeviper-fast/tiny")
    answers = [model.ask(video, question, max_new_tokens=16).text for question in questions]
    out = run(monkeypatch, capsys, "several_questions.py", video, "--questions", *questions)
    lines = [f"{question} -> {answer}" for question, answer in zip(questions, answers)]
    assert out.splitlines()[1:] == lines


def test_the_runs_name_what_training_knows():
    files = sorted(EXAMPLES.glob("*.toml"))
    assert files
    for file in files:
        run = read_config(file)
        assert [source.kind for source in run.sources] == ["synthetic"]
        assert run.stages[0].keep == run.phases[0].keep[0][0] == 0.05
