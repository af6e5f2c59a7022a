"""What README shows is run as it stands: a tiny model and a short video bear the names it uses."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from timeviper_fast import Answer, cli
from timeviper_fast.demo import tiny_model, write_demo_video
from timeviper_fast.inference.generate import StageCount
from timeviper_fast.stops import Stop

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^timeviper-fast .*$", README, re.M)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    tiny_model().save_pretrained(home / "MODEL")
    write_demo_video(home / "VIDEO.mp4", seconds=4, fps=5, height=48, width=64)
    return home


def test_python(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["answer"].text in capsys.readouterr().out
    assert (home / "COPY" / "config.json").exists()
    assert (home / "tiny" / "config.json").exists()
    assert names["y"].shape == names["x"].shape


@pytest.mark.parametrize("command", [c for c in COMMANDS if " convert " not in c])
def test_command(home, monkeypatch, capsys, command):
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err


def test_options_exist():
    commands = typer.main.get_group(cli.app).commands
    assert {word for command in COMMANDS for word in commands if f" {word} " in command} == {
        "ask", "convert", "demo", "doctor", "info",
    }  # fmt: skip
    known = {o for command in commands.values() for p in command.params for o in p.opts}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join([*COMMANDS, README])))
    assert mentioned - known <= {"--debug", "--index-url"}


def test_the_torch_to_install_is_the_tested_one():
    """Another one would be replaced by the constraints, on Linux with CUDA and all."""
    pins = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8").split()
    (torch,) = set(re.findall(r"pip install (torch\S*)", README))
    assert torch in pins


@pytest.mark.parametrize("part", [Answer, StageCount, Stop])
def test_every_field_of_json_is_named(part):
    named = set(re.findall(r"`(\w+)`", README[README.index("`--json`") :]))
    assert {field.name for field in fields(part)} <= named
