"""Every case small on the CPU, and reasons for no time: a provider is absent or does not fit."""

from __future__ import annotations

import sys
from unittest import mock

import pytest
import torch

from benchmarks import RESULTS
from benchmarks.shapes import Floor
from benchmarks.timing import measure
from benchmarks.timing.__main__ import OPS, cases
from benchmarks.timing.bench import DECODE, PREFILL
from benchmarks.timing.measure import Lab
from benchmarks.timing.store import predicted
from tests.benchmarks.timing.lab import LARGE, norm, rows_of

STEP = "decode step of the scan"
COUNTED = (RESULTS / "counted.md").read_text("utf-8").splitlines()
# torch's blockwise attention loses two to three times what plain softmax loses in its gradients
TOO_COARSE = ("transfer into the text, small, backward", "torch SDPA")


@pytest.mark.parametrize("op", OPS)
def test_every_case_runs_small(op: str) -> None:
    lab = Lab(gpu=False)
    for case in cases(op, small=True):
        rows = rows_of(case, lab)
        forms = [form.name for form in case.bench.forms]
        assert list(rows) == ["ours", "reference", *forms, "copy"]
        if case.name == TOO_COARSE[0]:
            assert rows.pop(TOO_COARSE[1])["reason"].startswith("fails the contract")
        assert not [row for row in rows.values() if "reason" in row]
        assert all(row["ms"] > 0 and row["gb_per_s"] > 0 for row in rows.values())
        assert rows["ours"]["error_over_bound"] <= 1
        assert rows["ours"]["peer"] in rows


def test_shapes_are_timevipers() -> None:
    tokens = [shape.size * shape.batch for shape in PREFILL]
    assert tokens == [32_768, 80_000, 160_000, 2048, 16_384, 262_144]
    assert [shape.size for shape in DECODE] == [1, 8, 64]


@pytest.mark.parametrize(
    ("name", "milliseconds"),
    [
        ("scan, 160k", 1.69), ("scan, 160k, backward", 3.87), ("token merging, 160k tokens", 4.00),
        ("selection, 160k", 0.077), ("selection from hidden states, 160k", 0.334),
        ("transfer into the text, 160k", 0.269), ("transfer into the text, 160k, backward", 0.673),
    ],
)  # fmt: skip
def test_floors_of_products_and_few_bytes(name: str, milliseconds: float) -> None:
    """Worked out by hand at 4.3 TB/s and 790 TFLOP/s."""
    assert 1e3 * LARGE[name].floor.seconds() == pytest.approx(milliseconds, rel=0.01)


@pytest.mark.parametrize(
    ("name", "whose", "row", "count"),
    [
        ("scan, 160k", "ours", "scan | tvkernels", 160_000),
        ("scan, 32k, backward", "mamba-ssm", "scan, backward | mamba-ssm", 32_768),
        # decode steps are counted at each batch
        (f"{STEP}, 16 bit state, batch 8", "ours", f"{STEP}, batch 8, 16 bit state | tvkernels", 8),
    ],
)
def test_predictions_are_what_was_counted(name: str, whose: str, row: str, count: int) -> None:
    (line,) = (line for line in COUNTED if line.startswith(f"| {row} |"))
    cold, dot = (float(line.split(" | ")[i].replace(",", "")) for i in (4, 10))
    assert predicted(LARGE[name], whose) == pytest.approx((1e3 * cold * count, 1e6 * dot * count))
    assert predicted(LARGE[name], "reference") is None


def test_on_the_nominal_gpu_a_prediction_stands_beside_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "predicted", lambda case, whose: Floor(4.3e9, 790e9))
    lab = Lab(gpu=False)
    lab.nominal = True
    row = rows_of(norm(), lab)["ours"]
    assert row["predicted_ms"] == 1
    assert row["of_nominal"] > 0


def test_errors_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """One provider's error does not take the others' times."""
    text = "CUDA out of memory. Tried to allocate 20.00 GiB."
    said = f"does not fit: OutOfMemoryError: {text}"
    greedy = mock.Mock(side_effect=torch.OutOfMemoryError(f"{text}\nMore"))
    broken = mock.Mock(side_effect=RuntimeError("x" * 900))
    rows = rows_of(norm(), greedy=greedy, broken=broken)
    assert rows["greedy"]["reason"] == said
    assert rows["broken"]["reason"] == f"RuntimeError: {'x' * 200}"
    assert rows["ours"]["ms"] > 0
    monkeypatch.setattr(measure, "Expected", greedy)
    assert rows_of(norm())["all"]["reason"] == said


def test_a_lost_gpu_ends_the_program_and_its_last_line_names_the_provider(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lab = Lab(gpu=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: sys.exit("illegal address"))

    def loses(**options: torch.Tensor) -> torch.Tensor:
        lab.gpu = True
        raise KeyError

    with pytest.raises(SystemExit, match="illegal address"):
        rows_of(norm(), lab, loses=loses)
    assert capsys.readouterr().err.splitlines()[-1] == "gated norm, small: loses"
