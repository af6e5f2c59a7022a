"""Every case small on the CPU, and reasons for no time: a provider is absent or does not fit."""

from __future__ import annotations

import sys

import pytest
import torch

import tvkernels
from benchmarks import RESULTS
from benchmarks.counting.predicted import predicted
from benchmarks.shapes import IN_PROJ, Floor
from benchmarks.timing import measure
from benchmarks.timing.__main__ import OPS, cases
from benchmarks.timing.bench import PREFILL, Case, Shape
from benchmarks.timing.measure import Lab
from tests.benchmarks.timing.lab import LARGE, called, norm, rows_of
from tvkernels.core import backend

# torch's blockwise attention loses two to three times what plain softmax loses in its gradients
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


@pytest.mark.parametrize("op", OPS)
def test_every_shape_falls_into_equal_parts(op: str) -> None:
    for bench in {case.bench.name: case.bench for case in cases(op, small=False)}.values():
        assert len(bench.shapes) in (3, 6)
        if bench.split is None or bench.split.parts is None:
            continue
        for shape in (Shape("small", bench.small), *bench.shapes):
            given = Case(bench, shape, backward=False).call("meta", torch.bfloat16).arguments
            for name, dim in bench.split.arguments.items():
                assert given[name].shape[dim] % bench.split.parts == 0, name


def test_shapes_are_timevipers() -> None:
    tokens = [shape.size * shape.batch for shape in PREFILL]
    assert tokens == [32_768, 80_000, 160_000, 2048, 16_384, 262_144]
    steps = called("decode step of the scan, 32 bit state, batch 8", LARGE).bench.shapes
    assert [shape.size for shape in steps] == [1, 8, 64]


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
    ("name", "row", "whose", "count"),
    [
        ("scan, 160k", "scan", "ours", 160_000),
        ("scan, 8 x 2k, backward", "scan, backward", "ours", 16_384),
        ("scan, 32k", "scan", "mamba-ssm", 32_768),
        ("decode step of the mixer, batch 8", "decode step of the mixer, batch 8", "ours", 8),
        (
            "decode step of the scan, 16 bit state, batch 64",
            "decode step of the scan, batch 64, 16 bit state", "mamba-ssm", 64,
        ),
    ],
)  # fmt: skip
def test_predictions_are_what_was_counted(name: str, row: str, whose: str, count: int) -> None:
    """As results/counted.md has it; decode steps are counted at each batch."""
    lines = (RESULTS / "counted.md").read_text(encoding="utf-8").splitlines()
    start = f"| {row} | {whose.replace('ours', 'tvkernels')} |"
    heads, line = (next(x for x in lines if x.startswith(s)) for s in ("| op and shape", start))
    cells = dict(zip(heads.strip("| ").split(" | "), line.strip("| ").split(" | ")))
    kb, mflop = (float(cells[head].replace(",", "")) for head in ("cold kB", "dot MFLOP"))
    case = called(name, LARGE)
    assert predicted(case, whose) == pytest.approx((1e3 * kb * count, 1e6 * mflop * count))
    assert predicted(case, "reference") is None


def test_on_the_nominal_gpu_a_prediction_stands_beside_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Lab, "_is_nominal", lambda lab: True)
    monkeypatch.setattr(measure, "predicted", lambda case, whose: Floor(4.3e9, 790e9))
    row = rows_of(norm())["ours"]
    assert row["predicted_ms"] == 1
    assert row["of_nominal"] > 0


def test_a_case_that_does_not_fit_says_so_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "free", lambda self: 2e9)
    # y and the whole of in_proj's output, of which the gate is a slice
    needed = 2 * 160_000 * (10_240 + IN_PROJ) + 2 * 10_240
    (row,) = rows_of(called("gated norm, 160k", LARGE)).values()
    assert row["reason"] == f"does not fit: {needed / 1e9:.2f} GB, 2.00 GB are free"
    monkeypatch.setattr(measure, "Expected", greedy)
    (row,) = rows_of(norm()).values()
    assert row["reason"] == "does not fit: 0.01 GB of arguments, 2.00 GB were free"


def greedy(*args: object, **options: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore")


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
    assert lab.yardstick
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: sys.exit("illegal address"))

    def loses(**options: torch.Tensor) -> torch.Tensor:
        lab.gpu = True
        raise KeyError

    with pytest.raises(SystemExit, match="illegal address"):
        rows_of(norm(), lab, loses=loses)
    assert capsys.readouterr().err.splitlines()[-1] == "gated norm, small: loses"
