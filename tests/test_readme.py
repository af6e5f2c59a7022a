"""README and the pages of docs/ run as they stand: a tiny model and a short video bear the names
that they use."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from tests.checkpoint.hub import hub_directory, hub_weights, tiny_tower
from tests.evaluation.sets.common import mlvu
from tests.nemotron_vl_directory import hub_directory as nvidia_directory
from tests.random_model import square_video, tiny_model
from timeviper_fast import Answer, TimeViper
from timeviper_fast.cli.main import app, main
from timeviper_fast.corpus.answer import Options
from timeviper_fast.corpus.records import Records
from timeviper_fast.corpus.rows import read_rows
from timeviper_fast.corpus.run import Worker, run_corpus
from timeviper_fast.inference.ended import StageCount
from timeviper_fast.inference.request import Opening
from timeviper_fast.presets import VISION_PRESETS
from timeviper_fast.stops import Stop
from timeviper_fast.training.config import read_config

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
TEXT = "\n".join(PAGES.values())
COMMANDS = sorted(set(re.findall(r"^timeviper-fast .*$", TEXT.replace("\\\n", ""), re.M)))
# these take minutes, or wait: their options are checked, and the commands have tests of their own
LONG = (" needle ", " held-out ", " train-tiny ", " watch ", " serve ", " --page")


# a run in two steps, under the name that the pages use
RUN = """
model = "MODEL"
output = "runs/mine"
source = [{ name = "films", file = "train.jsonl" }]
phase = [{ name = "short", steps = 2, sources = { films = 1 }, learn = ["projector"] }]
"""


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], re.M | re.S)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    tiny_model().save_pretrained(home / "MODEL")
    square_video(home / "VIDEO.mp4", seconds=4, fps=5, height=48, width=64)
    # the file that a command of the pages asks, whichever of them runs first
    library = home / "LIBRARY" / "VIDEO.mp4.session"
    TimeViper.from_pretrained(home / "MODEL").open(home / "VIDEO.mp4").save(library)
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A square."}]
    mlvu(home / "MLVU")
    (home / "MLVU/video/1_plotQA").mkdir(parents=True)
    shutil.copy(home / "VIDEO.mp4", home / "MLVU/video/1_plotQA/9.mp4")
    rows = [{"video": str(home / name), "conversations": turns} for name in ("VIDEO.mp4", "2.mp4")]
    shutil.copy(home / "VIDEO.mp4", home / "2.mp4")
    (home / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (home / "run.toml").write_text(RUN)
    asked = {"video": "VIDEO.mp4", "questions": ["What moves?"]}
    (home / "QUESTIONS.jsonl").write_text(json.dumps(asked) + "\n")
    # the records of the page's own run, which its other commands read
    options = Options(Opening(policy="uniform:64"))
    worker = Worker(TimeViper.from_pretrained(home / "MODEL"), Records(home / "RECORDS"), options)
    run_corpus(worker, read_rows(home / "QUESTIONS.jsonl"))
    flash = home / "OpenGVLab/VideoChat-Flash-Qwen2_5-2B_res448"
    hub_directory(flash, hub_weights(20), num_hidden_layers=20)
    nvidia_directory(home / "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VISION_PRESETS, "umt-hd-large", tiny_tower())
        yield home


def run(page: str) -> dict:
    """The names that a page's blocks leave behind; they are one program."""
    names: dict = {}
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page != "docs/ask.md"])
def test_python(home, monkeypatch, page):
    monkeypatch.chdir(home)
    assert run(page)


def test_python_of_asking_prints_the_answer_and_saves_models(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    names = run("docs/ask.md")
    assert names["answer"].text in capsys.readouterr().out
    assert (home / "COPY" / "config.json").exists()


def test_every_fenced_program_is_one_that_runs():
    languages = set(re.findall(r"^ *```(\w+)", TEXT, re.M))
    # rows of data are read by tests/dataset, runs by the next test
    assert languages == {"python", "json", "toml"}
    assert sum(len(blocks(page)) for page in PAGES) == len(re.findall(r"^ *```python", TEXT, re.M))


def test_runs_that_are_shown_are_runs(tmp_path):
    shown = re.findall(r"^```toml\n(.*?)^```", TEXT, re.M | re.S)
    assert shown
    for text in shown:
        (tmp_path / "run.toml").write_text(text, encoding="utf-8")
        assert read_config(tmp_path / "run.toml").phases


@pytest.mark.parametrize("command", [c for c in COMMANDS if any(map(c.__contains__, LONG))])
def test_options_of_long_commands(command):
    words = shlex.split(command, comments=True)[1:]
    group = typer.main.get_command(app)
    with group.make_context("timeviper-fast", list(words)) as context:
        name, found, rest = group.resolve_command(context, words)
        assert found.make_context(name, rest, parent=context).params


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if not any(map(c.__contains__, (" convert ", *LONG)))]
)
def test_command(home, monkeypatch, capsys, command):
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr().err


def test_every_line_of_a_shell_that_names_the_program_is_a_command():
    """Not one with a prompt in front, which the tests above would pass over."""
    assert not re.findall(r"^\s*[$#>%] *timeviper-fast.*$", TEXT, re.M)


def test_options_exist():
    commands = typer.main.get_group(app).commands
    assert {word for command in COMMANDS for word in commands if f" {word} " in f"{command} "} == {
        "analyse", "ask", "convert", "corpus", "demo", "doctor", "eval", "held-out", "index", "info",
        "needle", "plan", "serve", "session", "train", "train-tiny", "watch",
    }  # fmt: skip
    # those of the program itself too, such as --debug and --install-completion
    everything = [typer.main.get_command(app), *commands.values()]
    everything += [
        c for group in commands.values() for c in getattr(group, "commands", {}).values()
    ]
    known = {
        o for command in everything for p in command.params for o in (*p.opts, *p.secondary_opts)
    }
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    # of lmms-eval, up to the first underscore
    others = {"--limit", "--log", "--offset", "--use"}
    assert (
        mentioned - known
        <= {"--index-url", "--no-python", "--nproc-per-node", "--shm-size"} | others
    )


def test_the_torch_to_install_is_the_tested_one():
    """Another one would be replaced by the constraints, on Linux with CUDA and all."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    (torch,) = set(re.findall(r"pip install (torch\S*)", TEXT))
    assert torch in pins


@pytest.mark.parametrize("part", [Answer, StageCount, Stop])
def test_every_field_of_json_is_named(part):
    page = PAGES["docs/ask.md"]
    named = set(re.findall(r"`(\w+)`", page[page.index("`--json`") :]))
    assert {field.name for field in fields(part)} <= named


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/ask.md"])
def test_what_the_model_knows_is_said_before_the_first_program(page):
    text = PAGES[page]
    said = [
        re.search(words, text) for words in (r"synthetic\s+frames", r"answers\s.*mean\s+nothing")
    ]
    assert all(found and found.start() < text.index("```") for found in said)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_program_answers_rightly(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(page)[0], page, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.endswith(" True") for line in lines), lines


def unfounded(text: str, folder: Path) -> list[str]:
    """Lines of a page's tables of GPU figures that stand in no file of figures.

    The comment `<!-- figures: NAME.md -->` above such a table names the file. The table ends at the
    next empty line.
    """
    tables = re.findall(r"<!-- figures: (\S+) -->\n+(.*?)(?:\n\n|\Z)", text, re.S)
    known = {path.name: path.read_text("utf-8").splitlines() for path in folder.glob("*.md")}
    return [x for name, rows in tables for x in rows.splitlines() if x not in known.get(name, [])]


def test_gpu_figures_stand_in_a_file_of_figures(tmp_path):
    assert unfounded(TEXT, ROOT / "benchmarks/results") == []
    assert ("No kernel has run on a GPU yet" in PAGES["README.md"]) == ("<!-- figures:" not in TEXT)
    # a device's speed elsewhere in the text lacks that comment
    plain = re.sub(r"<!-- figures:.*?(?:\n\n|\Z)", "", TEXT, flags=re.S)
    assert not re.search(r"\d\s?(GB/s|TB/s|TFLOP/s)\b", plain)
    (tmp_path / "h200.md").write_text("| case | ms |\n| norm | 0.03 |\n\ntext", "utf-8")
    shown = "<!-- figures: h200.md -->\n| case | ms |\n| norm | 0.03 |\n\ntext"
    assert unfounded(shown, tmp_path) == []
    assert unfounded(shown.replace("0.03", "0.02"), tmp_path) == ["| norm | 0.02 |"]
    assert len(unfounded(shown.replace("h200", "h100"), tmp_path)) == 2
