"""A run's TOML file: its values, and one clear sentence for each mistake."""

from __future__ import annotations

import pytest

from timeviper_fast.config import CompressionStage
from timeviper_fast.training.config import read_config

RUN = """
model = "models/nine"
output = "runs/a"
autocast = "bfloat16"

[[source]]
name = "films"
file = "films.jsonl"
join = [2, 8]

[[source]]
name = "words"
kind = "text"
file = "words.json"

[[stage]]
layer = 7
select = "uniform"
keep = 0.5

[[phase]]
name = "alignment"
steps = 100
learn = ["projector"]
sources = { films = 1 }
keep = [1.0]

[[phase]]
name = "tuning"
steps = 11
sources = { films = 3.0, words = 1.0 }
frames = [16, 512]
keep = [[1.0, 0.5]]
learning_rate = 2e-5

[evaluation]
sources = { words = 1 }
samples = 8
"""


def read(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_what_a_file_means(tmp_path):
    run = read(tmp_path, RUN)
    assert [source.name for source in run.sources] == ["films", "words"]
    assert run.sources[0].options == {"file": "films.jsonl", "join": [2, 8]}
    assert run.stages == (CompressionStage(7, "uniform", 0.5),)
    assert run.evaluation.samples == 8
    first, second = run.phases
    assert first.learning_rates() == {"projector": 1e-5}
    assert second.learning_rates() == {"projector": 2e-5, "llm": 2e-5, "transv": 5e-5}
    assert second.frames == (16, 512)


def test_keep_stays_or_moves_in_a_straight_line(tmp_path):
    run = read(tmp_path, RUN)
    first, second = run.phases
    assert [first.stages_at(step, run.stages)[0].keep for step in (0, 99)] == [1, 1]
    kept = [second.stages_at(step, run.stages)[0].keep for step in (0, 5, 10)]
    assert kept == pytest.approx([1, 0.75, 0.5])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('output = "runs/a"', "", "training must have output, got model, autocast"),
        ("steps = 100", "", "phase 1 must have steps, got name, learn"),
        ('["projector"]', '"projector"', "learn must name some of vision, projector, llm, transv"),
        ('["projector"]', "[[1]]", "learn must name some of vision, projector, llm, transv"),
        (
            "keep = [1.0]",
            "keep = 0.5",
            "keep must be a list of shares, or of pairs of them, got 0.5",
        ),
        ("keep = [1.0]", 'keep = ["a"]', "keep must be a list of shares, or of pairs of them"),
        ("keep = [1.0]", "betas = 0.9", r"betas must be two numbers in \[0, 1\), got 0.9"),
        ("[evaluation]", "[[evaluation]]", "evaluation must be a table"),
        ("steps = 100", "steps = 0", "phase 'alignment': steps must be an integer above 0, got 0"),
        ("steps = 100", "step = 100", "phase 1: step must be one of its fields"),
        ('["projector"]', '["head"]', "learn must name some of vision, projector, llm, transv"),
        ("frames = [16, 512]", "frames = [512, 16]", "frames must be two integers"),
        ("keep = [1.0]", "keep = [1.5]", r"keep must hold shares in \(0, 1\]"),
        ("films = 3.0", "films = 0", "sources must give every source a weight above 0"),
        ("words = 1 }", "word = 1 }", r"sources must name sources of the file \(films, words\)"),
        ('name = "words"', 'name = "films"', "source must have names that differ"),
        ('"tuning"', '"a/b"', "name must be usable as a folder's name, got 'a/b'"),
        ('autocast = "bfloat16"', 'autocast = "fp8"', "autocast must be one of None, bfloat16"),
        ('select = "uniform"', 'select = "best"', "select must be one of 'uniform', 'attention'"),
        ("[evaluation]", "[evaluation", "config must be TOML, got .*run.toml"),
    ],
)
def test_mistakes(tmp_path, old, new, message):
    assert RUN.count(old) == 1
    with pytest.raises(ValueError, match=message):
        read(tmp_path, RUN.replace(old, new))


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"config must be a file that can be read, got .*no\.toml"):
        read_config(tmp_path / "no.toml")


def test_shares_for_another_number_of_stages(tmp_path):
    run = read(tmp_path, RUN)
    with pytest.raises(ValueError, match="keep must give each of the model's 2 stages a share"):
        run.phases[0].stages_at(0, run.stages * 2)
