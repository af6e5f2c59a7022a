"""Fixtures of the command line: a directory with a model and a video, and a way to run it."""

from __future__ import annotations

import sys

import pytest

from tests.random_model import square_video, tiny_model
from timeviper_fast.cli import main as cli_main


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a tiny model and a short video."""
    home = tmp_path_factory.mktemp("home")
    tiny_model().save_pretrained(home / "model")
    square_video(home / "video.mp4", seconds=6, fps=5, height=48, width=64)
    return home


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["timeviper-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli_main.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run
