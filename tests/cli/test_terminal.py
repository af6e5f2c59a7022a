"""Tables and rows of the terminal: narrow, wide, through a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import tvkernels
from tests.random_model import square_video
from timeviper_fast.cli import terminal
from timeviper_fast.stops import Stop


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 40 columns."""
    for name in ("out", "err"):
        console = Console(stderr=name == "err", force_terminal=True, width=40, color_system=None)
        monkeypatch.setattr(terminal, name, console)


@pytest.mark.usefixtures("narrow")
def test_a_narrow_terminal_breaks_no_name(run, home):
    _, doctor, _ = run("doctor")
    assert {row.op for row in tvkernels.explain()} <= set(doctor.splitlines())
    _, info, _ = run("info", "tiny")
    _, _, stops = run(
        "ask", home / "video.mp4", "What?", "--model", home / "model", "--times",
        "--stream", "--max-new-tokens", 2,
    )  # fmt: skip
    lines = stops.splitlines()
    assert {"decode", "prefill", "  uniform at layer 2", "  attention at layer 8"} <= set(lines)
    assert any(line.startswith("    shape 6 x 3 x 98 x 98, ms ") for line in lines)
    assert max(map(len, [*doctor.splitlines(), *info.splitlines(), *lines])) <= 40


def test_eighty_columns_keep_the_columns(run, monkeypatch, home):
    """If a row is too wide for a line, its first cell goes above the others, which stay aligned."""
    for name in ("out", "err"):
        console = Console(stderr=name == "err", force_terminal=True, width=80, color_system=None)
        monkeypatch.setattr(terminal, name, console)
    _, doctor, _ = run("doctor")
    lines = doctor.splitlines()
    assert max(map(len, lines)) <= 80
    at = lines.index("op")
    columns = [lines[at + 1].index(word) for word in ("kernel", "on", "backend", "why")]
    for row in tvkernels.explain():
        below = lines[lines.index(row.op) + 1]
        ends = [*columns[1:], None]
        cells = [below[start:end].strip() for start, end in zip(columns, ends)]
        assert cells == [row.kernel, row.device, row.backend, row.reason]
    _, _, stops = run(
        "ask", home / "video.mp4", "What?", "--model", home / "model", "--times",
        "--stream", "--max-new-tokens", 2,
    )  # fmt: skip
    assert max(map(len, stops.splitlines())) <= 80
    assert stops.startswith("stop    ")


def test_stops_of_an_hour_fit_eighty_columns(capsys):
    stops = [
        Stop("decode", "14400 x 1080 x 1920 x 3", "", 1234567.8, 150 * 2**30),
        Stop("prefill", "cache 12345.6 MiB", "230524 -> 11644", 123456.7, 150 * 2**30),
        Stop("prefill: attention stage before layer 39", "", "115200 -> 23040", 1.0, 2**30),
    ]
    console = Console(stderr=True, force_terminal=True, width=80, color_system=None)
    terminal.print_stops(console, stops)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2:4] == [
        "decode",
        "    14400 x 1080 x 1920 x 3                   1,234,567.8  153,600 MiB",
    ]
    assert lines[-1].split() == ["1,358,024.5", "153,600", "MiB"]


def test_a_pipe_gets_whole_rows(run, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = run("doctor")
    assert max(map(len, out.splitlines())) > 80
    _, out, _ = run("info", "tiny")
    assert out.splitlines()[-1].startswith("stages: before layer 2: uniform, ")
    assert out.splitlines()[-1].endswith("before layer 8: attention, keep 0.1, transfer")
    _, _, err = run("demo", home / "video.mp4", "--question", "What moves across it? " * 5)
    assert err.splitlines()[0] == "Q " + "What moves across it? " * 5
    assert err.splitlines()[1].endswith("Its answers about other videos mean nothing.")


def test_the_stops_end_with_their_total(run, home):
    ask = ("ask", home / "video.mp4", "What?", "--model", home / "model", "--max-new-tokens", 2)
    _, _, err = run(*ask, "--times")
    head, *rows = [line for line in err.splitlines() if line]
    assert head.endswith(" peak memory so far")
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    times = {name: float(ms.replace(",", "")) for name, *_, ms, _ in cells}
    total = times.pop("total")
    stages = [times.pop(name) for name in ("uniform at layer 2", "attention at layer 8")]
    assert len(times) == 8
    assert abs(total - sum(times.values())) < 0.5
    assert sum(stages) <= times["prefill"] + 0.1


ASK = (
    "import sys; from timeviper_fast.__main__ import main\n"
    "from timeviper_fast.cli import terminal\n"
    # every step is drawn, however fast it is
    "terminal.Progress.update = lambda bars, task, _update=terminal.Progress.update, **given: ("
    "_update(bars, task, **given), bars.refresh())\n"
    "main()"
)


@pytest.fixture
def ask_on(home):
    """Ask with standard error on a terminal (its output is returned) or on a pipe."""

    def ask_on(is_terminal, *options, **environment):
        main, end = pty.openpty() if is_terminal else os.pipe()
        # a transport stream has no index: it is read through
        video = square_video(home / "video.ts", seconds=6, fps=5, height=48, width=64)
        words = ("ask", video, "What?", "--model", home / "model")
        line = [sys.executable, "-c", ASK, *words, "--max-new-tokens", "2", "--chunk", "40"]
        variables = {**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment}
        with subprocess.Popen(
            [*line, *options],
            stdout=subprocess.PIPE,
            stderr=end,
            text=True,
            env=variables,
            cwd=Path(__file__).parents[2],
        ) as process:
            os.close(end)
            shown = b""
            try:
                while block := os.read(main, 65536):
                    shown += block
            except OSError:
                # reading a terminal raises EIO after its last writer has closed it
                pass
            os.close(main)
            said = process.stdout.read()
        assert process.returncode == 0, shown
        assert len(said.strip().splitlines()) == 1
        return shown.decode()

    return ask_on


def test_a_terminal_shows_a_bar_for_each_kind_of_work(ask_on):
    shown = ask_on(True, NO_COLOR="1")
    for what in ("scan", "weights", "frames", "prefill", "tokens"):
        assert f"{what} " in shown
    # 40 prompt tokens at a time: the bar of prefill moves in steps up to its end
    steps = [tuple(map(int, step)) for step in re.findall(r"prefill [^\n]*?(\d+)/(\d+)", shown)]
    done = sorted({step for step, _ in steps})
    assert len(done) > 3
    assert done[-1] == steps[-1][1]
    assert "\x1b[3" not in shown, "a colour"


@pytest.mark.parametrize(
    ("is_terminal", "options", "environment"),
    [(True, ("--quiet",), {}), (False, (), {"FORCE_COLOR": "1"})],
)
def test_no_bars_when_quiet_or_on_a_pipe(ask_on, is_terminal, options, environment):
    assert ask_on(is_terminal, *options, **environment) == ""


def test_words_between_colons_are_no_pictures(run, home):
    """Rich writes :car: as a picture unless told not to."""
    _, _, err = run("demo", home / "video.mp4", "--question", "Is there a :car: or [red]?")
    assert "Q Is there a :car: or [red]?" in err.splitlines()
