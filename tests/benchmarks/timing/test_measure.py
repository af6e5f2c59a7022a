"""Every case small on the CPU, and reasons for no time: a provider is absent or does not fit."""

from __future__ import annotations

import re
import sys

import pytest
import torch

import tvkernels
from benchmarks import RESULTS
from benchmarks.counting.predicted import counted, predicted
from benchmarks.shapes import IN_PROJ, Floor
from benchmarks.timing import measure
from benchmarks.timing.__main__ import OPS, cases
from benchmarks.timing.bench import DECODE, PREFILL
from benchmarks.timing.measure import Lab, bytes_of
from tests.benchmarks.timing.lab import LARGE, called, norm, rows_of
from tvkernels.core import backend

# torch's blockwise attention loses two to three times what plain softmax loses in its gradients
STEP, COUNTED = "decode step of the scan", (RESULTS / "counted.md").read_text(encoding="utf-8")
TOO_COARSE = ("transfer into the text, small, backward", "torch SDPA")


@pytest.mark.parametrize("op", OPS)
def test_every_case_runs_small(op: str) -> None:
    lab = Lab(gpu=False)
    for case in cases(op, small=True):
        rows = rows_of(case, lab)
        assert list(rows) == ["ours", "reference", *case.bench.forms, "copy"]
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
        ("scan", (1.69, 3.87)), ("convolution", (1.83, 2.74)), ("gated norm", (2.29, 3.81)),
        ("residual norm", (1.33, 1.33)), ("token merging", (4.00, 4.00)), ("selection", (0.077,)),
        ("selection from hidden states", (0.334,)), ("transfer into the text", (0.269, 0.673)),
    ],
)  # fmt: skip
def test_floors_at_160k_tokens(name: str, milliseconds: tuple[float, ...]) -> None:
    """Worked out by hand at 4.3 TB/s and 790 TFLOP/s."""
    found = [c for c in LARGE if c.bench.name == name and c.shape.name.startswith("160k")]
    assert [1e3 * case.floor.seconds() for case in found] == pytest.approx(milliseconds, rel=0.01)


@pytest.mark.parametrize(
    ("name", "whose", "row", "kernels", "count"),
    [
        ("scan, 160k", "ours", "scan", "tvkernels", 160_000),
        ("scan, 32k, backward", "mamba-ssm", "scan, backward", "mamba-ssm", 32_768),
        # decode steps are counted at each batch
        (
            f"{STEP}, 16 bit state, batch 8",
            "ours",
            f"{STEP}, batch 8, 16 bit state",
            "tvkernels",
            8,
        ),
    ],
)
def test_predictions_are_what_was_counted(
    name: str, whose: str, row: str, kernels: str, count: int
) -> None:
    each = counted()[row, kernels]
    assert predicted(called(name, LARGE), whose) == (each.bytes * count, each.flops * count)
    assert predicted(called(name, LARGE), "reference") is None
    (line,) = re.findall(rf"^\| {row} \| {kernels} \|.*", COUNTED, re.M)
    assert f"| {each.bytes / 1e3:,.2f} |" in line


def test_on_the_nominal_gpu_a_prediction_stands_beside_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "predicted", lambda case, whose: Floor(4.3e9, 790e9))
    lab = Lab(gpu=False)
    lab.nominal = True
    row = rows_of(norm(), lab)["ours"]
    assert row["predicted_ms"] == 1
    assert row["of_nominal"] > 0


def greedy(*args: object, **options: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore")


def test_a_case_that_does_not_fit_says_so_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    # y and the whole of in_proj's output, of which the gate is a slice
    needed = 2 * 160_000 * (10_240 + IN_PROJ) + 2 * 10_240
    assert bytes_of(called("gated norm, 160k", LARGE)) == needed
    monkeypatch.setattr(measure, "bytes_of", lambda case: needed)
    monkeypatch.setattr(measure, "Expected", greedy)
    monkeypatch.setattr(Lab, "free", lambda lab: 2e9)
    (row,) = rows_of(norm()).values()
    assert row["reason"] == f"does not fit: {needed / 1e9:.2f} GB needed, 2.00 GB free"


def broken(**options: torch.Tensor) -> torch.Tensor:
    raise KeyError("a\nlong story")


def test_one_providers_error_does_not_take_the_others_times() -> None:
    rows = rows_of(norm(), greedy=greedy, broken=broken)
    said = "does not fit: OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."
    assert rows["greedy"]["reason"] == said
    assert rows["broken"]["reason"] == "KeyError: 'a\\nlong story'"
    assert rows["ours"]["ms"] > 0


def test_a_missing_triton_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_HAS_TRITON", False)
    with tvkernels.use_backend("triton"):
        rows = rows_of(norm())
    assert rows["ours"]["reason"].startswith("rmsnorm: Triton is not installed")
    assert rows["reference"]["ms"] > 0


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
