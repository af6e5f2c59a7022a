"""The command that counts: its lines through the counts, its table, and that it runs at all."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import tvkernels
from benchmarks import ROOT
from benchmarks.counting import cost
from benchmarks.counting.cases import CASES, Case, backward
from benchmarks.counting.cost import Row, cells, fit
from benchmarks.counting.counter import Launch, Record
from benchmarks.shapes import FLOORS, Call, Floor, scan_of
from benchmarks.timing.peers import on_a_device


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
    counts = {"launches": 2, "requested": 4e3, "cold": 2e3, "together": 25e2, "cached": 3e3}
    row = Row("an op", "ours", counts | {"dot": 0, "special": 5}, 0.004, Floor(1e3))
    assert cells(row)[2:] == [
        *("2", "4.00", "2.00", "2.50", "3.00", "1.00"),
        *("2.000", "50%", "0.000", "0.005", "0.4%"),
    ]
    # what need not be done at all has no ratio
    assert cells(row._replace(floor=Floor(0)))[7:10] == ["0.00", "-", "-"]


def by_hand(name: str, programs: int, flops: int) -> Record:
    return Record([Launch(name, counts=Counter({"programs": programs, "dot.fp16": flops}))])


def never(*_: object) -> Call:
    raise AssertionError


def test_the_shares_are_of_the_grid_at_the_size_and_of_all_heads():
    case = Case("", "", never, size=10, part=2, least="")
    grows = [by_hand("grows", 4 * size, 0) for size in (1, 2)]
    stays = [by_hand("stays", 4, 0) for _ in (1, 2)]
    torch_does = [by_hand("torch.sum", 0, 0) for _ in (1, 2)]
    records = [Record([r.launches[0] for r in rs]) for rs in zip(grows, stays, torch_does)]
    # of 2 x 40 programs, of 2 x 4, of 2 x 10 times what is done for one
    assert cost._shares(case, (1, 2), records) == [
        pytest.approx([1 / 20, 1 / 2, 1 / 20]),
        pytest.approx([1 / 10, 1 / 2, 1 / 10]),
    ]


def test_what_a_case_adds_is_added_to_ours_alone(monkeypatch: pytest.MonkeyPatch):
    first = Case("first", "", never, size=4, counted=(4,), part=3, least="")
    case = Case("both", "", never, size=100, plus=(first,), least="")
    flops = {"first": 8, "both": 5}
    monkeypatch.setattr(
        cost, "_record", lambda case, provider, size: by_hand("", 1, flops[case.name] * size)
    )
    ours, theirs = (cost.count(case, name, (1, 2)) for name in ("tvkernels", "mamba-ssm"))
    assert ours is not None
    assert theirs is not None
    assert ours.counts["dot"] == pytest.approx(5 + 3 * 8)
    assert theirs.counts["dot"] == pytest.approx(5)
    assert (round(ours.counts["launches"]), round(theirs.counts["launches"])) == (2, 1)


def test_on_a_device_no_value_is_read():
    """What a CPU checks by reading is no launch of a GPU's."""
    x, falls = torch.zeros(1, 4, 8), torch.tensor([[2, 1]])
    with pytest.raises(ValueError, match="ascend"):
        tvkernels.compact(x, falls)
    with on_a_device(), tvkernels.use_backend("reference"):
        tvkernels.compact(x, falls)
    with pytest.raises(ValueError, match="ascend"):
        tvkernels.compact(x, falls)


def test_results_without_a_gradient_are_left_out_of_the_backward():
    x = torch.ones(3, requires_grad=True)

    def forward(*_: object) -> Call:
        return Call(lambda: (2 * x, torch.zeros(3, dtype=torch.int32)), (x,))

    (dx,) = backward(forward)(SimpleNamespace(), 1, torch.float32).run()
    assert dx.shape == (3,)


def test_sixteen_heads_look_back_as_far_as_all_of_them():
    """Until 126 bits of the state are forgotten, or to the start of a piece of 8,064 tokens."""

    def tokens(part: int) -> float:
        _, by = scan_of(part)(SimpleNamespace(), 2, torch.float32)
        step, A = torch.nn.functional.softplus(by[6].detach()), by[2].detach()
        assert len(A) == 128 // part
        assert 1e-3 < float(step.min()) < float(step.max()) < 0.1
        assert -16 < float(A.min()) < float(A.max()) <= -1
        # which decay a step meets is chance
        assert abs(float(torch.stack([step.log(), A]).corrcoef()[0, 1])) < 0.15
        return float((126 * math.log(2) / (-A * step)).clamp(max=8064).mean())

    assert tokens(8) == pytest.approx(tokens(1), rel=0.05)


def test_products_can_be_the_floor():
    # 7.9 MFLOP take 10 ns at 790 TFLOP/s, 4300 bytes 1 ns at 4.3 TB/s
    assert Floor(4300, 7.9e6).seconds() == pytest.approx(10e-9)
    assert Floor(43000, 7.9e5).seconds() == pytest.approx(10e-9)


def test_the_floors_are_those_of_the_model():
    """Per token of a prefill, or of a decode step, worked out by hand."""
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
        "decode step of the convolution": 245_760,
        "decode step of the scan, 32 bit state": 10_531_072,
        "decode step of the scan, 16 bit state": 5_288_192,
        "decode step of the mixer": 10_649_860,
        "transfer into the text": 4142,
    }
    assert {k: round(FLOORS[k](n).bytes / n) for k in expected} == expected


def test_names_are_distinct():
    assert len({case.name for case in CASES}) == len(CASES)


def run(*arguments: str) -> str:
    program = [sys.executable, "-m", "benchmarks.counting", *arguments]
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
    assert float(forward[8]) == pytest.approx(1.0, abs=0.002)
    assert ("| mamba-ssm |" in out) != ("mamba-ssm is not installed" in out)
