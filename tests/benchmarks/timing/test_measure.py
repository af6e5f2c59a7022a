"""Every benchmark small on the CPU, and who gets no number: what is absent, slow or does not fit."""

from __future__ import annotations

import time

import pytest
import torch

import tvkernels
from benchmarks import RESULTS
from benchmarks.counting.predicted import predicted
from benchmarks.shapes.calls import IN_PROJ
from benchmarks.shapes.floors import Floor
from benchmarks.timing import measure, store
from benchmarks.timing.bench import PREFILL, Case, Shape
from benchmarks.timing.measure import DeviceLost, Lab, TimeIsUp, _dense, _in_reach, within
from benchmarks.timing.peers import Provider
from tests.benchmarks.timing.lab import PARTS, benches, lab_with, right, rows_of, small
from tvkernels.core import backend

# torch's blockwise attention loses two to three times what plain softmax loses in its gradients
TOO_COARSE = {("transfer into the text, small, backward", "torch SDPA")}


@pytest.mark.parametrize("part", PARTS)
def test_every_case_runs_small(part: str) -> None:
    lab = Lab(gpu=False)
    for case in (case for bench in benches(part) for case in bench.cases(small=True)):
        rows = rows_of(lab, case)
        assert list(rows) == lab.names(case)
        for name in [name for name in rows if (case.name, name) in TOO_COARSE]:
            assert rows.pop(name)["reason"].startswith("fails the contract")
        assert not [row for row in rows.values() if "reason" in row]
        assert all(row["ms"] > 0 and row["gb_per_s"] > 0 for row in rows.values())
        assert rows["ours"]["error_over_bound"] <= 1
        assert rows["ours"]["peer"] in rows


@pytest.mark.parametrize("part", PARTS)
def test_shapes_are_timevipers_and_their_parts_are_equal(part: str) -> None:
    for bench in benches(part):
        assert len(bench.shapes) in (3, 6)
        if bench.split is None or bench.split.parts is None:
            continue
        for shape in (Shape("small", bench.small), bench.shapes[-1], *bench.shapes[:4]):
            recorded = Case(bench, shape, backward=False).call("meta", torch.bfloat16)
            for name, dim in bench.split.arguments.items():
                assert recorded.arguments[name].shape[dim] % bench.split.parts == 0, name


def test_named_shapes() -> None:
    tokens = [shape.size * shape.batch for shape in PREFILL]
    assert tokens == [32_768, 80_000, 160_000, 2048, 16_384, 262_144]
    assert [shape.size for shape in benches("selective_state_update")[0].shapes] == [1, 8, 64]


def test_floors_in_milliseconds_at_160k_tokens() -> None:
    """Worked out by hand at 4.3 TB/s and 790 TFLOP/s."""
    expected = {
        "scan": (1.69, 3.87), "convolution": (1.83, 2.74), "gated norm": (2.29, 3.81),
        "residual norm": (1.33, 1.33), "token merging": (4.00, 4.00), "selection": (0.077,),
        "selection from hidden states": (0.334,), "transfer into the text": (0.269, 0.673),
    }  # fmt: skip
    found = {bench.name: bench for part in PARTS for bench in benches(part)}
    for name, times in expected.items():
        cases = [case for case in found[name].cases(small=False) if "160k" in case.name]
        assert [1e3 * c.floor.seconds() for c in cases] == pytest.approx(list(times), rel=0.01)


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
    """Read from results/counted.md by hand; decode steps are counted at each batch."""
    cases = {c.name: c for part in PARTS for b in benches(part) for c in b.cases(small=False)}
    lines = (RESULTS / "counted.md").read_text(encoding="utf-8").splitlines()
    start = f"| {row} | {whose.replace('ours', 'tvkernels')} |"
    heads, line = (next(x for x in lines if x.startswith(s)) for s in ("| op and shape", start))
    cells = dict(zip(heads.strip("| ").split(" | "), line.strip("| ").split(" | ")))
    kb, mflop = (float(cells[head].replace(",", "")) for head in ("cold kB", "dot MFLOP"))
    assert predicted(cases[name], whose) == pytest.approx((1e3 * kb * count, 1e6 * mflop * count))
    assert predicted(cases[name], "reference") is None


def test_a_prediction_stands_beside_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "_is_nominal", lambda lab: True)
    monkeypatch.setattr(measure, "predicted", lambda case, whose: Floor(4.3e9, 790e9))
    row = Lab(gpu=False).run(small())[0]
    assert row["predicted_ms"] == 1
    heads, _, line = store.table([row])
    assert dict(zip(heads.split("|"), line.split("|")))[" predicted "] == " 1 "


# absent, too large, too slow


def test_what_does_not_fit_says_so_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "free", lambda self: 2e9)
    bench = benches("rmsnorm")[0]
    case = Case(bench, bench.shapes[2], backward=False)
    # y and the whole of in_proj's output, of which the gate is a slice
    needed = 2 * 160_000 * (10_240 + IN_PROJ) + 2 * 10_240
    (row,) = Lab(gpu=False).run(case)
    assert row["reason"] == f"does not fit: {needed / 1e9:.2f} GB, 2.00 GB are free"


def test_one_providers_memory_does_not_take_the_others_numbers() -> None:
    def greedy(**options: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows = rows_of(lab_with(greedy=greedy), small())
    assert rows["greedy"]["reason"].startswith("does not fit: ")
    assert rows["ours"]["ms"] > 0


def test_a_missing_triton_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_HAS_TRITON", False)
    with tvkernels.use_backend("triton"):
        rows = rows_of(Lab(gpu=False), small())
    assert rows["ours"]["reason"].startswith("rmsnorm: Triton is not installed")
    assert rows["reference"]["ms"] > 0


def test_who_is_slow_to_get_ready_is_not_asked_again() -> None:
    asked = []

    def slow(**options: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        time.sleep(30)
        return right(**options)

    lab = lab_with(slow=slow)
    lab.deadline = time.monotonic() + 0.5
    for _ in range(2):
        assert rows_of(lab, small())["slow"]["reason"] == "not ready within 0 s at small"
    assert len(asked) == 1


def test_within_lets_the_quick_pass_and_stops_the_slow() -> None:
    for seconds in (5, float("inf")):
        with within(seconds):
            pass

    def slow() -> None:
        torch.no_grad().__enter__()
        time.sleep(5)

    with pytest.raises(TimeIsUp), within(0.05):
        slow()
    assert torch.is_grad_enabled()


# a lost GPU


def broken(*args: object, **options: object) -> None:
    raise RuntimeError("CUBLAS_STATUS_INTERNAL_ERROR")


def lose_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "_lost", lambda self: "AcceleratorError: illegal address")


def test_a_lost_device_ends_the_part_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may also refuse to empty its cache."""
    lab, freed = lab_with(broken=broken), iter([2e9])
    assert lab.yardstick

    def free(lab: Lab) -> float:
        for memory in freed:
            return memory
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(Lab, "free", free)
    lose_the_gpu(monkeypatch)
    with pytest.raises(DeviceLost, match="broken at norm, small: AcceleratorError") as caught:
        lab.run(small())
    assert [row["provider"] for row in caught.value.rows] == ["ours", "reference", "broken"]


def test_a_case_that_cannot_be_judged_is_a_row_or_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "Exact", broken)
    (row,) = Lab(gpu=False).run(small())
    assert row["reason"] == "RuntimeError: CUBLAS_STATUS_INTERNAL_ERROR"
    lose_the_gpu(monkeypatch)
    with pytest.raises(DeviceLost, match="norm, small: RuntimeError: CUBLAS"):
        Lab(gpu=False).run(small())


# 32-bit offsets


@pytest.mark.parametrize(("tokens", "copied"), [(94_787, []), (94_788, ["z"]), (160_000, ["z"])])
def test_beyond_32_bits_the_others_get_dense_copies(tokens: int, copied: list[str]) -> None:
    """The gate's row stride of 22656 passes 2^31 behind token 94,787."""
    call = Case(benches("rmsnorm")[0], Shape("s", tokens), False).call("meta", torch.bfloat16)
    got = _in_reach(Provider("mamba-ssm", lambda op: None, 2**31), call.arguments)
    changed = [n for n, x in got.items() if x is not call.arguments[n]]
    assert changed == copied
    assert all(got[name].is_contiguous() for name in changed)
    assert _in_reach(Provider("ours", lambda op: None), call.arguments) is call.arguments


def test_what_is_beyond_32_bits_even_dense_is_not_run() -> None:
    call = Case(benches("rmsnorm")[0], PREFILL[-1], False).call("meta", torch.bfloat16)
    with pytest.raises(OverflowError, match="2,684,354,560 elements, its offsets 2,147,483,648"):
        _in_reach(Provider("mamba-ssm", lambda op: None, 2**31), call.arguments)


def test_dense_copies_keep_the_order_of_dimensions_and_are_noted() -> None:
    x = torch.randn(2, 5, 12)[..., 3:7].mT  # channel-last
    assert torch.equal(_dense(x), x)
    assert _dense(x).stride() == (20, 1, 4)
    lab = Lab(gpu=False)
    lab.providers.append(Provider("short", lambda op: right, 127 * 96))
    row = rows_of(lab, small())["short"]
    assert row["note"] == "contiguous copies of its arguments"
    assert row["error_over_bound"] <= 1
