"""The command that counts: its lines through the counts, its table, and that it runs at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import shapes, shapes_video
from benchmarks.cost import Row, fit, table_line
from benchmarks.shapes import Floor

ROOT = Path(__file__).parents[2]
CASES = (*shapes.CASES, *shapes_video.CASES)


def test_a_straight_line_is_continued_exactly():
    series = [{"cold": 7.0 + 3.0 * n, "launches": 2.0} for n in (2, 4, 8)]
    counts, misfit = fit((2, 4, 8), series, 1000)
    assert counts == pytest.approx({"cold": 3007.0, "launches": 2.0})
    assert misfit < 1e-12


def test_what_is_not_a_line_is_reported():
    counts, misfit = fit((1, 2, 3), [{"cold": n * n} for n in (1.0, 2.0, 3.0)], 4)
    # least squares through (1, 1), (2, 4), (3, 9): 4 n - 10 / 3
    assert counts["cold"] == pytest.approx(4 * 4 - 10 / 3)
    assert misfit == pytest.approx(2 / 3 / 9)


def test_one_size_is_taken_as_it_is():
    assert fit((5,), [{"cold": 11.0}], 100) == ({"cold": 11.0}, 0.0)


def test_a_row_says_how_far_from_the_floor():
    counts = {"launches": 2, "requested": 4e3, "cold": 2e3, "cached": 3e3, "dot": 0, "special": 5}
    cells = table_line(Row("an op", "ours", counts, 0.004, Floor(1e3))).strip("| ").split(" | ")
    assert "|".join(cells[2:]) == "2|4.00|2.00|3.00|1.00|2.000|50%|0.000|0.005|0.4%"


def test_products_can_be_the_floor():
    # 7.9 MFLOP take 10 ns at 790 TFLOP/s, 4300 bytes 1 ns at 4.3 TB/s
    assert Floor(4300, 7.9e6).seconds() == pytest.approx(10e-9)
    assert Floor(43000, 7.9e5).seconds() == pytest.approx(10e-9)


def test_the_floors_are_those_of_the_model():
    """Per token of a prefill, or of a decode step, worked out by hand."""
    floors = {case.name: case.floor for case in CASES}
    n = 1_000_000
    expected = {
        "gated norm": 61_440,
        "gated norm, backward": 102_400,
        "residual norm": 35_840,
        "residual norm, backward": 35_840,
        "activation of the MLP": 62_720,
        "activation of the MLP, backward": 94_080,
        "convolution": 49_152,
        "convolution, backward": 73_728,
        "decode step of the convolution, batch 8": 245_760,
        "decode step of the scan, batch 8, 32 bit state": 10_531_072,
        "decode step of the scan, batch 8, 16 bit state": 5_288_192,
        "decode step of the mixer, batch 8": 10_649_860,
        "transfer into the text": 4142,
    }
    assert {k: round(floors[k](n).bytes / n) for k in expected} == expected


def test_names_are_distinct():
    assert len({case.name for case in CASES}) == len(CASES)


def run(*arguments: str) -> str:
    program = [sys.executable, "-m", "benchmarks.cost", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_counts_our_norm():
    """Without the peer it says so; the residual norm moves what it must and no more."""
    out = run("--only", "residual norm", "--counted", "4", "8", "12")
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if "tvkernels |" in line]
    forward, backward = rows
    assert forward[0] == "residual norm"
    assert backward[0] == "residual norm, backward"
    assert float(forward[7]) == pytest.approx(1.0, abs=0.002)
    assert ("| mamba-ssm |" in out) != ("mamba-ssm is not installed" in out)


def test_a_triton_imported_too_early_is_an_error():
    code = "import triton, benchmarks.cost as c; c.main([])"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "Triton is already imported" in done.stderr
