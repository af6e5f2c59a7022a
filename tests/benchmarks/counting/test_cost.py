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
from benchmarks.counting.counter import Launch
from benchmarks.shapes import FLOORS, Call, Floor, scan_of


def test_counts_lie_on_a_line_or_the_misfit_is_reported():
    series = [{"cold": 7.0 + 3.0 * n, "launches": 2.0} for n in (2, 4, 8)]
    counts, misfit = fit((2, 4, 8), series, 1000)
    assert counts == pytest.approx({"cold": 3007.0, "launches": 2.0})
    assert misfit < 1e-12
    # least squares through (1, 1), (2, 4), (3, 9): 4 n - 10 / 3
    counts, misfit = fit((1, 2, 3), [{"cold": n * n} for n in (1.0, 2.0, 3.0)], 4)
    assert counts["cold"] == pytest.approx(4 * 4 - 10 / 3)
    assert misfit == pytest.approx(2 / 3 / 9)
    # one size gives a constant
    assert fit((5,), [{"cold": 11.0}], 100) == ({"cold": 11.0}, 0.0)


def test_a_row_says_how_far_from_the_floor():
    counts = {"launches": 2, "requested": 4e3, "cold": 2e3, "together": 25e2, "cached": 3e3}
    row = Row("an op", "ours", counts | {"dot": 0, "special": 5}, 0.004, Floor(1e3))
    assert cells(row)[2:] == [
        *("2", "4.00", "2.00", "2.50", "3.00", "1.00"),
        *("2.000", "50%", "0.000", "0.005", "0.4%"),
    ]
    # there is no ratio to a floor of 0
    assert cells(row._replace(floor=Floor(0)))[7:10] == ["0.00", "-", "-"]


def by_hand(programs: int, flops: int = 0) -> Launch:
    return Launch("by hand", counts=Counter({"programs": programs, "dot.fp16": flops}))


def test_a_share_is_the_fraction_of_the_programs_at_the_row_s_size():
    case = Case("", "", None, size=10, part=2, least="")
    # one grid grows with the size, one does not, and a PyTorch operation has none
    runs = [[by_hand(4 * size), by_hand(4), by_hand(0)] for size in (1, 2)]
    # of 2 parts: 40 programs each, 4 programs each, 10 times the operation of size 1 each
    assert cost.shares(case, (1, 2), runs) == [
        pytest.approx([4 / 80, 4 / 8, 1 / 20]), pytest.approx([8 / 80, 4 / 8, 2 / 20]),
    ]  # fmt: skip


def test_a_further_case_is_added_to_our_counts_and_not_to_the_peer_s(
    monkeypatch: pytest.MonkeyPatch,
):
    def launched(prepare: object, provider: str, size: int, *_: object) -> list[Launch]:
        return [by_hand(1, size * (8 if prepare is first.prepare else 5))]

    first = Case("first", "", scan_of(), size=4, counted=(4,), part=3, least="")
    case = Case("both", "", None, size=100, plus=(first,), least="")
    monkeypatch.setattr(cost, "launched", launched)
    for provider, flops, launches in (("tvkernels", 5 + 3 * 8, 2), ("mamba-ssm", 5, 1)):
        row = cost.count(case, provider, (1, 2))
        assert row.counts["dot"] == pytest.approx(flops)
        assert row.counts["launches"] == pytest.approx(launches)


def test_on_a_gpu_no_value_is_read():
    """Checks that read values run on the CPU only, so they must not be counted as launches."""
    x, falls = torch.zeros(1, 4, 8), torch.tensor([[2, 1]])
    with pytest.raises(ValueError, match="ascend"):
        tvkernels.compact(x, falls)
    with cost.as_on_a_gpu(), tvkernels.use_backend("reference"):
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
    """A token reaches back until 126 bits of the state are forgotten, at most 8,064 tokens."""

    def tokens(part: int) -> float:
        _, by = scan_of(part)(SimpleNamespace(), 2, torch.float32)
        step, A = torch.nn.functional.softplus(by[6].detach()), by[2].detach()
        assert len(A) == 128 // part
        assert 1e-3 < float(step.min()) < float(step.max()) < 0.1
        assert -16 < float(A.min()) < float(A.max()) <= -1
        # steps and decays are paired by chance
        assert abs(float(torch.stack([step.log(), A]).corrcoef()[0, 1])) < 0.15
        return float((126 * math.log(2) / (-A * step)).clamp(max=8064).mean())

    assert tokens(8) == pytest.approx(tokens(1), rel=0.05)


def test_the_floors_are_those_of_the_model():
    """Per token of a prefill, or of a decode step, worked out by hand."""
    n = 1_000_000
    expected = {
        "gated norm": 61_440, "gated norm, backward": 102_400,
        "residual norm": 35_840, "residual norm, backward": 35_840,
        "activation of the MLP": 62_720, "activation of the MLP, backward": 94_080,
        "convolution": 49_152, "convolution, backward": 73_728,
        "decode step of the convolution": 245_760,
        "decode step of the scan, 32 bit state": 10_531_072,
        "decode step of the scan, 16 bit state": 5_288_192,
        "decode step of the mixer": 10_649_860, "transfer into the text": 4142,
    }  # fmt: skip
    assert {k: round(FLOORS[k](n).bytes / n) for k in expected} == expected


def test_names_are_distinct():
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_command_counts_our_norm():
    """Without mamba-ssm it says so; our residual norm moves exactly its floor."""
    command = [sys.executable, "-m", "benchmarks.counting", "--only", "residual norm"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "text": True}
    out = subprocess.run([*command, "--counted", "4", "8", "12"], check=True, **options).stdout
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if "tvkernels |" in line]
    assert [row[0] for row in rows] == ["residual norm", "residual norm, backward"]
    assert float(rows[0][8]) == pytest.approx(1.0, abs=0.002)
    assert ("| mamba-ssm |" in out) != ("mamba-ssm is not installed" in out)
