"""`timeviper-fast train`: a run to its model, the check of its data, and mistakes in one line."""

from __future__ import annotations

import json

import pytest

from tests.cli.common import one_line

RUN = """
model = "preset:tiny-trained"
output = "{output}"
log_every = 1
on_error = "{on_error}"

[[source]]
name = "words"
kind = "text"
file = "{file}"

[[phase]]
name = "talk"
steps = 2
sources = {{ words = 1 }}
learn = ["llm"]
"""


@pytest.fixture
def config(tmp_path):
    """A run on two sound rows and one without an answer."""
    turns = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}]
    rows = [{"conversations": turns}, {"conversations": turns}, {"conversations": turns[:1]}]
    data = tmp_path / "words.json"
    data.write_text(json.dumps(rows))

    def written(on_error: str):
        path = tmp_path / "run.toml"
        given = {"output": tmp_path / "run", "file": data, "on_error": on_error}
        path.write_text(RUN.format(**given))
        return str(path)

    return written


def test_a_run_prints_its_model(run, config, tmp_path):
    code, out, err = run("train", config("skip"))
    assert code == 0, err
    assert out.strip() == str(tmp_path / "run" / "1-talk" / "model")
    assert (tmp_path / "run" / "1-talk" / "model" / "config.json").is_file()
    assert [line.split()[1] for line in err.splitlines() if line.startswith("talk")] == [
        "1/2",
        "2/2",
    ]


def test_the_check_lists_faulty_rows_and_trains_nothing(run, config, tmp_path):
    code, out, err = run("train", config("skip"), "--check")
    assert code == 2
    assert out == ""
    assert "words: 1 faulty rows" in err
    assert "words.json" in err
    assert not (tmp_path / "run" / "1-talk").exists()


def test_a_run_starts_in_the_folder_of_its_check(run, config, tmp_path):
    words = tmp_path / "words.json"
    words.write_text(json.dumps(json.loads(words.read_text())[:2]))
    (tmp_path / "run" / "media").mkdir(parents=True)
    code, _, err = run("train", config("raise"), "--check")
    assert code == 0
    assert err.split()[-2:] == ["no", "fault"]
    assert run("train", config("raise"))[0] == 0


def test_the_check_of_a_synthetic_run_says_what_it_read(run, config, tmp_path):
    path = config("raise")
    text = (tmp_path / "run.toml").read_text()
    given = text.replace('kind = "text"', 'kind = "synthetic"')
    given = "".join(line for line in given.splitlines(True) if not line.startswith("file"))
    (tmp_path / "run.toml").write_text(given)
    code, _, err = run("train", path, "--check")
    assert (code, err.split()[-2:]) == (0, ["no", "fault"])
    (tmp_path / "run.toml").write_text(given.replace("tiny-trained", "tiny-trainde"))
    one_line(run("train", path, "--check"), "tiny-trainde")
    (tmp_path / "run.toml").write_text(given.replace('"synthetic"', '"synthetic"\nlevel = "hart"'))
    one_line(run("train", path), "source 'words': level must be one of study, hard, got 'hart'")


def test_faulty_rows_are_one_line(run, config):
    one_line(run("train", config("raise")), "file must have no faulty rows", "--check lists them")


def test_a_mistake_names_its_table(run, config, tmp_path):
    path = config("skip")
    text = (tmp_path / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(text.replace("steps = 2", "steps = 0"))
    one_line(run("train", path), "phase 'talk': steps must be an integer above 0, got 0")


def test_a_missing_file_is_one_line(run, tmp_path):
    one_line(run("train", str(tmp_path / "no.toml")), "config", "no.toml")
