"""Every benchmark small on the CPU, and who gets a number: the right, the present, what fits."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

import tvkernels
from benchmarks.counting.predicted import predicted
from benchmarks.shapes import EPS, IN_PROJ, Call, Floor, gated_norm
from benchmarks.timing import measure as rows_module
from benchmarks.timing import peers as providers_module
from benchmarks.timing import store as record
from benchmarks.timing.__main__ import parts
from benchmarks.timing.bench import PREFILL, Bench, Case, Form, Shape, Split
from benchmarks.timing.measure import DeviceLost, Lab, TimeIsUp, _dense, _in_reach, within
from benchmarks.timing.peers import Provider, reference
from tvkernels.core import backend

# torch's blockwise attention loses two to three times what plain softmax loses in its gradients
TOO_COARSE = {("transfer into the text, small, backward", "torch SDPA")}
COUNTED = (record.RESULTS / "counted.md").read_text(encoding="utf-8")
HEADS = next(line for line in COUNTED.splitlines() if line.startswith("| op and shape |"))
PARTS = [part for part in parts() if part != "contracts"]


def benches(part: str) -> tuple[Bench, ...]:
    return importlib.import_module(f"benchmarks.ops.bench_{part}").BENCHES


@pytest.mark.parametrize("part", PARTS)
def test_every_case_runs_small(part: str) -> None:
    lab = Lab(gpu=False)
    for bench in benches(part):
        for case in bench.cases(small=True):
            rows = {row["provider"]: row for row in lab.run(case)}
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
        tokens = [shape.size * shape.batch for shape in bench.shapes]
        assert len(tokens) == (6 if len(bench.shapes) > 3 else 3)
        if bench.split is None or bench.split.parts is None:
            continue
        for shape in (bench.small, bench.shapes[-1], *bench.shapes[:4]):
            recorded = Case(bench, shape, backward=False).call("meta", torch.bfloat16)
            for name, dim in bench.split.arguments.items():
                assert recorded.arguments[name].shape[dim] % bench.split.parts == 0, name


def test_named_shapes() -> None:
    assert [shape.size * shape.batch for shape in PREFILL] == [
        32_768, 80_000, 160_000, 2048, 16_384, 262_144,
    ]  # fmt: skip
    decode = benches("selective_state_update")[0].shapes
    assert [shape.size for shape in decode] == [1, 8, 64]


def test_floors_in_milliseconds_at_160k_tokens() -> None:
    """Worked out by hand at 4.3 TB/s and 790 TFLOP/s."""
    expected = {
        "scan": (1.69, 3.87), "convolution": (1.83, 2.74), "gated norm": (2.29, 3.81),
        "residual norm": (1.33, 1.33), "token merging": (4.00, 4.00), "selection": (0.077, None),
        "selection from hidden states": (0.334, None), "transfer into the text": (0.269, 0.673),
    }  # fmt: skip
    found = {b.name: b for part in PARTS for b in benches(part) if len(b.shapes) == 6}
    for name, times in expected.items():
        for least, milliseconds in zip((found[name].floor, found[name].backward), times):
            shape = found[name].shapes[2]
            assert shape.name.startswith("160k")
            got = None if least is None else 1e3 * least(shape.size * shape.batch).seconds()
            assert got == pytest.approx(milliseconds, rel=0.01) if got else milliseconds is None


def test_predictions_are_what_was_counted() -> None:
    """Worked out by hand from results/counted.md; decode steps are counted at each batch."""
    found = {c.name: c for part in PARTS for b in benches(part) for c in b.cases(small=False)}
    for name, row, whose, count in (
        ("scan, 160k", "scan", "ours", 160_000),
        ("scan, 8 x 2k, backward", "scan, backward", "ours", 16_384),
        ("scan, 32k", "scan", "mamba-ssm", 32_768),
        ("decode step of the mixer, batch 8", "decode step of the mixer, batch 8", "ours", 8),
        (
            "decode step of the scan, 16 bit state, batch 64",
            "decode step of the scan, batch 64, 16 bit state", "mamba-ssm", 64,
        ),
    ):  # fmt: skip
        kernels = {"ours": "tvkernels"}.get(whose, whose)
        line = next(x for x in COUNTED.splitlines() if x.startswith(f"| {row} | {kernels} |"))
        cells = [cell.strip().replace(",", "") for cell in line.split("|")]
        heads = [cell.strip() for cell in HEADS.split("|")]
        kb, mflop = (float(cells[heads.index(head)]) for head in ("cold kB", "dot MFLOP"))
        guess = predicted(found[name], whose)
        assert guess == pytest.approx((1e3 * kb * count, 1e6 * mflop * count))
    assert predicted(found["scan, 32k"], "reference") is None


def test_a_prediction_stands_beside_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "_nominal", lambda lab: (4.3e12, 790e12))
    monkeypatch.setattr(rows_module, "predicted", lambda case, whose: Floor(4.3e9, 790e9))
    row = Lab(gpu=False).run(small())[0]
    assert row["predicted_ms"] == 1
    heads, _, line = record.table([row])
    cells = dict(zip(heads.split("|"), line.split("|")))
    assert cells[" predicted "] == " 1 "


# a small op to be wrong about: rows are independent, the weight is shared


def small(backward: bool = False, **changed: object) -> Case:
    def prepare(ops: SimpleNamespace, tokens: int, dtype: torch.dtype) -> Call:
        x, z = torch.randn(2, 1, tokens, 2 * 48, dtype=dtype)[..., 48:].unbind()
        weight = torch.randn(48, dtype=dtype)
        by = (x.requires_grad_(), z.requires_grad_(), weight.requires_grad_())
        return Call(lambda: ops.rmsnorm_fn(x, weight, None, z, EPS, 24, False), by)

    bench = Bench(
        "norm",
        prepare,
        lambda tokens: Floor(tokens * 48 * 6),
        (Shape("s", 128),),
        Shape("s", 128),
        split=Split(64, {"x": 1, "z": 1}, (1,)),
        backward=lambda tokens: Floor(tokens * 48 * 10),
    )
    bench = dataclasses.replace(bench, **changed)
    return next(case for case in bench.cases(small=True) if case.backward == backward)


def lab_with(**others: object) -> Lab:
    lab = Lab(gpu=False)
    lab.providers += [Provider(name, lambda op, f=f: f) for name, f in others.items()]
    return lab


def right(*args: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
    return tvkernels.rmsnorm_fn(*args, **options)


def scaled(**options: torch.Tensor) -> torch.Tensor:
    return right(**options) * 1.1


def last_row_lost(**options: torch.Tensor) -> torch.Tensor:
    y = right(**options)
    return torch.cat([y[:, :-1], torch.zeros_like(y[:, -1:])], 1)


def infinite_off_the_parts(**options: torch.Tensor) -> torch.Tensor:
    """Row 3 lies in part 1 of 64, which is not compared."""
    y = right(**options).clone()
    y[:, 3] = float("inf")
    return y


def two_results(**options: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return right(**options), right(**options)


def broken(**options: torch.Tensor) -> torch.Tensor:
    raise KeyError("a\nlong story")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (scaled, "fails the contract: result 0: L2 error 0.1, may be 0.00"),
        (last_row_lost, "fails the contract: result 0"),
        (infinite_off_the_parts, "fails the contract: not finite: 0"),
        (two_results, "fails the contract: it gives 2 results, not 1"),
        (broken, "KeyError: 'a\\nlong story'"),
    ],
)
def test_who_is_wrong_gets_no_number(wrong: object, why: str) -> None:
    rows = {row["provider"]: row for row in lab_with(wrong=wrong, right=right).run(small())}
    assert rows["wrong"]["reason"].startswith(why)
    assert "ms" not in rows["wrong"]
    assert rows["right"]["ms"] > 0
    assert rows["ours"]["checked"] == "16 of 64 parts"


class HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, weight: torch.Tensor) -> torch.Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad / 2


@pytest.mark.parametrize("leaf", ["weight", "x"])
def test_a_wrong_gradient_gets_no_number_though_the_values_are_right(leaf: str) -> None:
    """The weight's is a sum over all rows; the rows that are not compared have cotangent 0."""

    def wrong(**options: torch.Tensor) -> torch.Tensor:
        return right(**{**options, leaf: HalfGradient.apply(options[leaf])})

    rows = {row["provider"]: row for row in lab_with(wrong=wrong).run(small(backward=True))}
    assert rows["wrong"]["reason"].startswith(f"fails the contract: d{leaf}: ")
    assert rows["ours"]["ms"] > 0
    assert rows["reference"]["error_over_bound"] < 0.6


@pytest.mark.parametrize("name", ["coarse", "ours"])
def test_a_coarse_result_gets_no_number_whoever_made_it(name: str) -> None:
    def coarse(**options: torch.Tensor) -> torch.Tensor:
        return right(**options) * 1.01

    lab = lab_with()
    lab.providers[0] = Provider(name, lambda op: coarse)
    row = next(r for r in lab.run(small()) if r["provider"] == name)
    assert row["reason"].startswith("fails the contract")
    assert "ms" not in row


def test_integers_must_be_the_truths_unless_a_judge_says_otherwise() -> None:
    merge = next(benches("tome")[0].cases(small=True))

    def other_slots(**options: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens, sizes, slots = tvkernels.tome_merge(**options)
        return tokens, sizes, slots.flip(1)

    rows = {row["provider"]: row for row in lab_with(other=other_slots).run(merge)}
    assert "integers differ" in rows["other"]["reason"]

    select = next(benches("attention_topk")[0].cases(small=True))

    def first_kept(q: torch.Tensor, k: torch.Tensor, keep: int, span: object) -> object:
        _, _, scores = tvkernels.attention_topk(q, k, keep, span)
        every = torch.arange(k.shape[1])[None]
        return every[:, :keep], every[:, keep:], scores

    def unordered(q: torch.Tensor, k: torch.Tensor, keep: int, span: object) -> object:
        kept, dropped, scores = tvkernels.attention_topk(q, k, keep, span)
        return kept.flip(1), dropped, scores

    def twice(q: torch.Tensor, k: torch.Tensor, keep: int, span: object) -> object:
        _, dropped, scores = tvkernels.attention_topk(q, k, keep, span)
        return torch.sort(dropped[:, :keep]).values, dropped, scores

    lab = lab_with(first=first_kept, unordered=unordered, twice=twice)
    rows = {row["provider"]: row for row in lab.run(select)}
    assert "dropped a token above" in rows["first"]["reason"]
    assert "do not ascend" in rows["unordered"]["reason"]
    assert "each token once" in rows["twice"]["reason"]


def test_a_form_may_be_checked_in_another_dtype() -> None:
    def in_float32_only(x: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        return right(x=x, **options) * (1 if x.dtype == torch.float32 else 3)

    forms = {
        "there": Form(in_float32_only, checked_in=torch.float32),
        "here": Form(in_float32_only),
    }
    rows = {row["provider"]: row for row in Lab(gpu=False).run(small(forms=forms))}
    assert rows["there"]["note"] == "checked in float32"
    assert rows["there"]["ms"] > 0
    assert rows["here"]["reason"].startswith("fails the contract")
    assert rows["ours"]["peer"] == "there"


def test_a_form_may_be_given_what_a_model_makes_once() -> None:
    def of_eps(smallest: float, **options: torch.Tensor) -> torch.Tensor:
        return right(eps=smallest, **options)

    def before(arguments: dict) -> dict:
        rest = {name: x for name, x in arguments.items() if name != "eps"}
        return rest | {"smallest": arguments["eps"]}

    forms = {"other words": Form(of_eps, before=before)}
    for backward in (False, True):
        rows = {r["provider"]: r for r in Lab(gpu=False).run(small(backward, forms=forms))}
        assert rows["other words"]["ms"] > 0


def test_plain_pytorch_is_timed_up_to_a_length() -> None:
    rows = {row["provider"]: row for row in lab_with(right=right).run(small(plain_up_to=127))}
    reason = "left out: plain PyTorch runs up to 127 tokens here"
    assert rows["reference"] == {"case": "norm, s", "provider": "reference", "reason": reason}
    assert rows["right"]["ms"] > 0
    assert rows["right"]["checked"] == "1 of 64 parts"
    rows = {row["provider"]: row for row in Lab(gpu=False).run(small(plain_up_to=128))}
    assert rows["reference"]["ms"] > 0
    assert rows["reference"]["checked"] == "16 of 64 parts"


def test_of_one_part_it_is_the_last_that_is_checked() -> None:
    case = small(plain_up_to=127)
    rows = {row["provider"]: row for row in lab_with(wrong=last_row_lost).run(case)}
    assert rows["wrong"]["reason"].startswith("fails the contract: result 0")
    backward = small(backward=True, plain_up_to=127)
    assert {row["provider"]: row for row in Lab(gpu=False).run(backward)}["ours"]["ms"] > 0


def test_a_lost_device_may_refuse_to_empty_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = iter([2e9])

    def free(lab: Lab) -> float:
        try:
            return next(freed)
        except StopIteration:
            raise RuntimeError("CUDA error: an illegal memory access") from None

    lab = lab_with(broken=broken)
    assert lab.yardstick
    monkeypatch.setattr(Lab, "free", free)
    monkeypatch.setattr(Lab, "_lost", lambda self: "AcceleratorError: illegal address")
    with pytest.raises(DeviceLost, match="broken at norm, s"):
        lab.run(small())


# who takes which arguments


def stand_in_for_mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules with the parameters of mamba-ssm 2.3.2."""

    def rms_norm_fn(
        x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-6,
        dropout_p=0.0, rowscale=None, prenorm=False, residual_in_fp32=False,
        zero_centered_weight=False, return_dropout_mask=False, out=None, residual_out=None,
    ): ...  # fmt: skip

    def rmsnorm_fn(
        x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True, is_rms_norm=True
    ): ...

    def selective_state_update(
        state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False,
        state_batch_indices=None,
    ): ...  # fmt: skip

    def mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None,
        seq_idx=None, cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float("inf")),
        return_final_states=False, return_varlen_states=False,
    ): ...  # fmt: skip

    rooms = {
        "layer_norm": rms_norm_fn, "layernorm_gated": rmsnorm_fn,
        "selective_state_update": selective_state_update, "ssd_combined": mamba_chunk_scan_combined,
    }  # fmt: skip
    for room, function in rooms.items():
        module = ModuleType(room)
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, f"mamba_ssm.ops.triton.{room}", module)
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "selective_scan_cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(providers_module.importlib.util, "find_spec", lambda name: name)


@pytest.mark.parametrize("part", PARTS)
def test_every_provider_takes_every_cases_arguments(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_mamba_ssm(monkeypatch)
    mamba = Provider("mamba-ssm", vars(providers_module.mamba_ssm()).get)
    lab, bound = Lab(gpu=False), []
    lab.providers.append(mamba)
    for bench in benches(part):
        for case in bench.cases(small=False):
            recorded = case.call("meta", torch.bfloat16)
            for provider in lab._able(case, recorded.op):
                form = bench.forms.get(provider.name)
                arguments = recorded.arguments
                if form is not None and form.before is not None:
                    arguments = form.before(arguments)
                run = provider.function(recorded.op)
                inspect.signature(run).bind(**arguments)
                bound.append(provider.name)
    has_one = ("ssd", "rmsnorm", "selective_state_update", "decode_step")
    assert ("mamba-ssm" in bound) == (part in has_one)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_mixers_step_by_two_kernels_is_the_step(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also mamba-ssm's, by the names of the op: here with our update in its kernel's place."""
    case = next(benches("decode_step")[0].cases(small=True))
    call = Case(case.bench, Shape("s", batch), False).call("cpu", torch.float32)
    expected = tvkernels.mamba2_decode_step(**fresh(call.arguments))
    theirs = functools.partial(providers_module._mixer_step, tvkernels.selective_state_update)
    form = case.bench.forms["our two ops"]
    for run, arguments in ((theirs, call.arguments), (form.run, form.before(call.arguments))):
        assert torch.allclose(run(**fresh(arguments)), expected, rtol=1e-4, atol=1e-5)


def fresh(arguments: dict) -> dict:
    return {n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("span", [(0, 90), (7, 60)])
def test_every_selection_keeps_the_same(batch: int, span: tuple[int, int]) -> None:
    q = torch.randn(batch, 8, 16)
    hidden, weight = torch.randn(batch, 90, 48), torch.randn(4 * 16, 48) * 48**-0.5
    ours = tvkernels.attention_topk_hidden(q, hidden, weight, 20, span)
    for name, form in benches("attention_topk")[1].forms.items():
        theirs = form.run(q, hidden, weight, 20, span)
        for mine, other in zip(ours[:2], theirs[:2]):
            assert torch.equal(mine, other), name


# what does not fit, is not there, or takes too long


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

    rows = {row["provider"]: row for row in lab_with(greedy=greedy).run(small())}
    assert rows["greedy"]["reason"].startswith("does not fit: ")
    assert rows["ours"]["ms"] > 0


def test_a_missing_triton_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_HAS_TRITON", False)
    with tvkernels.use_backend("triton"):
        rows = {row["provider"]: row for row in Lab(gpu=False).run(small())}
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
        row = next(row for row in lab.run(small()) if row["provider"] == "slow")
        assert row["reason"] == "not ready within 0 s at s"
    assert len(asked) == 1


def test_within_lets_the_quick_pass_and_stops_the_slow() -> None:
    with within(5):
        pass
    with within(float("inf")):
        pass

    def slow() -> None:
        torch.no_grad().__enter__()
        time.sleep(5)

    with pytest.raises(TimeIsUp), within(0.05):
        slow()
    assert torch.is_grad_enabled()


def test_a_lost_device_ends_the_part_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "_lost", lambda self: "AcceleratorError: illegal address")
    with pytest.raises(DeviceLost, match="broken at norm, s: AcceleratorError") as caught:
        lab_with(broken=broken).run(small())
    assert [row["provider"] for row in caught.value.rows] == ["ours", "reference", "broken"]


def test_a_case_that_cannot_be_judged_is_a_row_or_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("CUBLAS_STATUS_INTERNAL_ERROR")

    monkeypatch.setattr(rows_module, "Truth", broken)
    (row,) = Lab(gpu=False).run(small())
    assert row["reason"] == "RuntimeError: CUBLAS_STATUS_INTERNAL_ERROR"
    monkeypatch.setattr(Lab, "_lost", lambda self: "AcceleratorError: illegal address")
    with pytest.raises(DeviceLost, match="norm, s: RuntimeError: CUBLAS"):
        Lab(gpu=False).run(small())


# 32-bit offsets


@pytest.mark.parametrize(("tokens", "copied"), [(94_787, []), (94_788, ["z"]), (160_000, ["z"])])
def test_beyond_32_bits_the_others_get_dense_copies(
    tokens: int, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate's row stride of 22656 passes 2^31 behind token 94,787."""
    bench = dataclasses.replace(benches("rmsnorm")[0], prepare=gated_norm)
    call = Case(bench, Shape("s", tokens), backward=False).call("meta", torch.bfloat16)
    mamba = Provider("mamba-ssm", lambda op: None, 2**31)
    got = _in_reach(mamba, call.arguments)
    changed = [n for n, x in got.items() if x is not call.arguments[n]]
    assert changed == copied
    for name in changed:
        assert got[name].is_contiguous()
    assert _in_reach(Provider("ours", lambda op: None), call.arguments) is call.arguments


def test_what_is_beyond_32_bits_even_dense_is_not_run() -> None:
    call = Case(benches("rmsnorm")[0], PREFILL[-1], False).call("meta", torch.bfloat16)
    with pytest.raises(OverflowError, match="2,684,354,560 elements, its offsets 2,147,483,648"):
        _in_reach(Provider("mamba-ssm", lambda op: None, 2**31), call.arguments)


def test_dense_copies_keep_the_order_of_dimensions() -> None:
    x = torch.randn(2, 5, 12)[..., 3:7].mT  # channel-last
    dense = _dense(x)
    assert torch.equal(dense, x)
    assert dense.stride() == (20, 1, 4)


def test_copies_are_noted_and_right() -> None:
    lab = Lab(gpu=False)
    lab.providers.append(Provider("short", lambda op: right, 127 * 96))
    row = next(row for row in lab.run(small()) if row["provider"] == "short")
    assert row["note"] == "contiguous copies of its arguments"
    assert row["error_over_bound"] <= 1


def test_the_compiled_reference_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or f)
    x = torch.randn(3, 8)
    run = reference("rms_norm", compiled=True)
    with tvkernels.use_backend("triton"):
        got = run(x, torch.ones(8), 1e-5)
    assert compiled == [tvkernels.rms_norm]
    assert torch.equal(got, tvkernels.rms_norm(x, torch.ones(8), 1e-5))
