"""Every program in examples/ runs as a user starts it, and prints what it promises."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.nemotron_vl_directory import hub_directory
from timeviper_fast.training.config import read_config

EXAMPLES = Path(__file__).parents[2] / "examples"

# what each prints
PRINTS = {
    "ask.py": "before layer 2: 256 -> 128 vision tokens",
    "blocking_curves.py": "V2I absent from layer 5",
    "several_questions.py": "64 frames, read once",
    "ops_alone.py": "prefill and steps differ from one pass by at most",
    "patch_a_model.py": "tvkernels.mamba_chunk_scan_combined",
    "questions_per_video.py": "| embedded | 2 |",
    "packed_loss.py": "step 3: loss",
    "ten_thousand_frames.py": "10 right\nten at once",
}
# less than a user would want; no thread more than the other tests have
FEW = {
    "blocking_curves.py": ("--videos", 1, "--layers", 5),
    "questions_per_video.py": ("--frames", 32, "--videos", 1, "--questions", 2),
    "ten_thousand_frames.py": ("--frames", 64, "--threads", 1),
}


def run(monkeypatch, capsys, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_run():
    alone = {"compare_nemotron_vl.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PRINTS, *alone}


@pytest.mark.parametrize("name", PRINTS)
def test_example(monkeypatch, capsys, name, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert PRINTS[name] in run(monkeypatch, capsys, name, *FEW.get(name, ()))


def test_the_figures_of_blocking_are_written_for_every_layer(monkeypatch, capsys, tmp_path):
    file = tmp_path / "curves.json"
    few = ("--videos", 1, "--layers", 3, "--output", file)
    run(monkeypatch, capsys, "blocking_curves.py", *few)
    told = json.loads(file.read_text())
    assert [len(curve["points"]) for curve in told["blocking"]] == [7] * 12
    for curve in told["blocking"]:
        whole, points = curve["whole"], curve["points"]
        assert [point["layer"] for point in points] == [*range(7)]
        # attention layer 3 is the last one that is blocked here
        assert {p["log_likelihood"] for p in points[4:]} == {whole["log_likelihood"]}
        assert {p["log_likelihood"] for p in points[:4]} == {points[3]["log_likelihood"]}
        for point in points:
            assert point["n"] == 3
            assert sum(task["right"] for task in point["tasks"].values()) == point["right"]
    assert [[p["drop"] for p in c["points"]] for c in told["redundancy"]] == [[0.5, 0.9]] * 2
    assert [layer["layer"] for layer in told["looks"]["no stage"]] == [0, 2, 3, 4, 5]


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


@pytest.mark.parametrize(
    ("tolerance", "code", "said"), [(2e-4, 0, "| equal |"), (0, 1, "| DIFFERS |")]
)
def test_nemotron_vl_here_and_in_transformers(monkeypatch, capsys, tmp_path, tolerance, code, said):
    """In float32 logits differ by rounding; 0 stands for a model that computes something else."""
    directory = hub_directory(tmp_path / "released")
    few = ("--frames", 3, "--max-new-tokens", 6, "--tolerance", tolerance)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, capsys, "compare_nemotron_vl.py", directory, *few)
    assert ended.value.code == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[2:5]] == ["embeddings", "logits", "greedy"]
    assert lines[3].endswith(said)
    assert lines[4].endswith("| 6 | 0 differ | equal |")
