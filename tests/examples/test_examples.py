"""Every program in examples/ runs as a user starts it, and prints what it promises."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# what each prints
PRINTS = {
    "ask.py": "before layer 2: 128 -> 64 vision tokens",
    "several_questions.py": "8 frames of 16 tokens, encoded once",
    "ops_alone.py": "prefill and steps differ from one pass by at most",
    "patch_a_model.py": "tvkernels.mamba_chunk_scan_combined",
    "packed_loss.py": "step 3: loss",
}


def run(monkeypatch, capsys, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_example(monkeypatch, capsys, name):
    assert PRINTS[name] in run(monkeypatch, capsys, name)


def test_steps_on_the_packed_loss_lower_it(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "packed_loss.py", "--steps", 3).splitlines()
    losses = [float(line.split()[3].rstrip(",")) for line in lines]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3


def test_several_questions_answers_as_ask_does(monkeypatch, capsys, tmp_path):
    from timeviper_fast.demo import tiny_model, write_demo_video

    video = write_demo_video(tmp_path / "video.mp4", seconds=3, fps=4, height=48, width=64)
    question = "What moves?"
    answer = tiny_model().ask(video, question, max_new_tokens=16)
    out = run(monkeypatch, capsys, "several_questions.py", video, "--questions", question)
    assert out.splitlines()[1] == f"{question} -> {answer.text}"
