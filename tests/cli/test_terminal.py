"""Tables and rows of the terminal: narrow, wide, through a pipe."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

import tvkernels
from timeviper_fast.cli import terminal


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


def test_a_pipe_gets_whole_rows(run, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = run("doctor")
    assert max(map(len, out.splitlines())) > 80
    _, out, _ = run("info", "tiny")
    assert out.splitlines()[-1].startswith("stages: before layer 2: uniform, ")
    assert out.splitlines()[-1].endswith("before layer 8: attention, keep 0.1, transfer")
    _, _, err = run("demo", home / "video.mp4", "--question", "What moves across it? " * 5)
    assert err.splitlines()[0].endswith("but the answer means nothing.")
    assert err.splitlines()[1] == "Q " + "What moves across it? " * 5


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
