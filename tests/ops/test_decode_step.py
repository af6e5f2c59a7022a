"""mamba2_decode_step against float64 loops, the ops it is made of, a golden, and its laws."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    assert_close_by_rule,
    check_capture,
    check_contract,
    compilers,
    device,
    on_device,
)
from tests.interpreter import lazily
from tests.ops.common import DATA, DTYPES, exact, law, randn
from tvkernels import reference, use_backend
from tvkernels.decode_step import mamba2_decode_step
from tvkernels.decode_step.op import _step
from tvkernels.rmsnorm import rmsnorm_fn


def naive_step(
    zxbcdt: torch.Tensor,
    conv_state: torch.Tensor,
    ssm_state: torch.Tensor,
    cache_seqlens: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    A_log: torch.Tensor,
    D: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    activation: str | None = "silu",
    state_batch_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """One entry, channel and state at a time, in one wide dtype; (y, conv state, SSM state)."""
    wide = torch.promote_types(zxbcdt.dtype, torch.float32)
    _, heads, headdim, d_state = ssm_state.shape
    dim, (channels, width) = heads * headdim, conv1d_weight.shape
    groups = (channels - dim) // (2 * d_state)
    y = zxbcdt.new_zeros(len(zxbcdt), dim)
    conv, ssm = conv_state.clone(), ssm_state.clone()
    for b in range(len(zxbcdt)):
        row = b if state_batch_indices is None else int(state_batch_indices[b])
        if row < 0:
            continue
        mixed = []
        for c in range(channels):
            t = int(cache_seqlens[b])
            conv[row, c, t % conv.shape[2]] = zxbcdt[b, dim + c]
            total = torch.zeros((), dtype=wide, device=zxbcdt.device)
            for k in range(width):
                x = conv[row, c, (t - k) % conv.shape[2]].to(wide)
                total = total + conv1d_weight[c, width - 1 - k].to(wide) * x
            total = total if conv1d_bias is None else total + conv1d_bias[c].to(wide)
            mixed.append(total if activation is None else total / (1 + torch.exp(-total)))
        for h in range(heads):
            g = h // (heads // groups)
            B = torch.stack(mixed[dim + g * d_state : dim + (g + 1) * d_state])
            start = dim + (groups + g) * d_state
            C = torch.stack(mixed[start : start + d_state])
            dt = zxbcdt[b, dim + channels + h].to(wide)
            dt = dt if dt_bias is None else dt + dt_bias[h].to(wide)
            dt = torch.log1p(torch.exp(dt)) if dt < 30 else dt
            dt = min(max(dt, dt.new_tensor(dt_limit[0])), dt.new_tensor(dt_limit[1]))
            decay = torch.exp(-dt * torch.exp(A_log[h].to(wide)))
            for p in range(headdim):
                x = mixed[h * headdim + p]
                new = decay * ssm[row, h, p].to(wide) + dt * x * B
                out = (new * C).sum()
                out = out if D is None else out + D[h].to(wide) * x
                gate = zxbcdt[b, h * headdim + p].to(wide)
                y[b, h * headdim + p] = (out * gate / (1 + torch.exp(-gate))).to(y.dtype)
                ssm[row, h, p] = new.to(ssm.dtype)
    return y, conv, ssm


def run(conv_state: torch.Tensor, ssm_state: torch.Tensor, **inputs: Any) -> tuple[Any, ...]:
    conv, ssm = conv_state.clone(), ssm_state.clone()
    return mamba2_decode_step(conv_state=conv, ssm_state=ssm, **inputs), conv, ssm


def step_inputs(
    batch: int = 2,
    heads: int = 4,
    headdim: int = 5,
    groups: int = 2,
    d_state: int = 3,
    width: int = 4,
    state_len: int = 4,
    **changes: Any,
) -> dict[str, Any]:
    dim = heads * headdim
    channels = dim + 2 * groups * d_state
    inputs = {
        "zxbcdt": randn(batch, dim + channels + heads, seed=1),
        "conv_state": randn(batch, channels, state_len, seed=2),
        "ssm_state": randn(batch, heads, headdim, d_state, seed=3),
        "cache_seqlens": torch.arange(2, 2 + batch, device=device()),
        "conv1d_weight": randn(channels, width, seed=4),
        "conv1d_bias": randn(channels, seed=5),
        "dt_bias": randn(heads, seed=6),
        "A_log": randn(heads, seed=7),
        "D": randn(heads, seed=8),
    }
    return {**inputs, **changes}


POOL = {"conv_state": randn(5, 32, 4, seed=2), "ssm_state": randn(5, 4, 5, 3, seed=3)}
VARIANTS: dict[str, dict[str, Any]] = {
    "model": {},
    "bare": {"conv1d_bias": None, "dt_bias": None, "D": None, "activation": None},
    "clamped": {"dt_limit": (0.5, 0.75)},
    "one group": {"groups": 1},
    "group per head": {"groups": 4},
    "one head, one sequence": {"heads": 1, "groups": 1, "batch": 1},
    "one tap": {"width": 1, "state_len": 1},
    "longer state": {"width": 3, "state_len": 7},
    "powers of two": {"headdim": 4, "d_state": 8},
    "rows": {**POOL, "state_batch_indices": torch.tensor([4, 1], dtype=torch.int32)},
    "padding": {**POOL, "state_batch_indices": torch.tensor([-1, 3])},
    "padding beside row 0": {**POOL, "state_batch_indices": torch.tensor([0, -1])},
    "only padding": {**POOL, "state_batch_indices": torch.tensor([-1, -7])},
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, dtype: torch.dtype) -> None:
    check_contract(run, naive_step, step_inputs(**VARIANTS[variant]), dtype=dtype)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_every_place_in_the_ring(index: torch.dtype) -> None:
    for seen in (0, 3, 4, 5, 2**31 - 2):
        seqlens = torch.tensor([seen, seen + 1], dtype=index, device=device())
        check_contract(run, naive_step, step_inputs(cache_seqlens=seqlens))
        check_contract(run, naive_step, step_inputs(cache_seqlens=seqlens, state_len=5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_state_beside_16_bit_tokens(backend: str, dtype: torch.dtype) -> None:
    """The model's own dtypes."""
    inputs = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in step_inputs().items()
    }
    inputs["ssm_state"] = step_inputs()["ssm_state"].float()
    doubles = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    names = ("y", "conv_state", "ssm_state")
    rows = zip(names, run(**inputs), naive_step(**inputs), naive_step(**doubles))
    for name, got, plain, truth in rows:
        assert got.dtype == (torch.float32 if name == "ssm_state" else dtype)
        assert_close_by_rule(got, plain, truth, name)


def test_output_is_read_before_the_state_is_rounded(backend: str) -> None:
    inputs = {
        k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in step_inputs().items()
    }
    inputs["ssm_state"] = inputs["ssm_state"].bfloat16()
    y, _, state = run(**inputs)
    expected, _, wide = run(**{**inputs, "ssm_state": inputs["ssm_state"].float()})
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(state, wide.bfloat16())


@pytest.mark.parametrize("programs", [528, 5, 1])
@pytest.mark.parametrize(("headdim", "d_state"), [(80, 128), (64, 128), (50, 96), (1, 1)])
def test_sizes_of_models(
    backend: str, headdim: int, d_state: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 9B, of most, odd ones, the least; heads cut among programs, and not."""
    if backend == "triton":
        monkeypatch.setattr("tvkernels.decode_step.kernel.PROGRAMS", programs)
    inputs = step_inputs(1, 4, headdim, 2, d_state)
    for got, want in zip(run(**inputs), composed(**inputs)):
        torch.testing.assert_close(got, want, **exact)


def composed(
    zxbcdt: torch.Tensor,
    conv_state: torch.Tensor,
    ssm_state: torch.Tensor,
    cache_seqlens: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor,
    dt_bias: torch.Tensor,
    A_log: torch.Tensor,
    D: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The references of the two ops that it is made of, with the mixer's splits between them."""
    heads, headdim, d_state = ssm_state.shape[1:]
    dim, channels = heads * headdim, len(conv1d_weight)
    conv, ssm = conv_state.clone(), ssm_state.clone()
    z, xbc, dt = zxbcdt.split([dim, channels, heads], dim=-1)
    mixed = reference.causal_conv1d_update_ref(
        xbc[..., None], conv, conv1d_weight, conv1d_bias, "silu", cache_seqlens
    )[..., 0]
    bc = (channels - dim) // 2
    x, B, C = mixed.split([dim, bc, bc], dim=-1)

    def wide(t: torch.Tensor) -> torch.Tensor:
        return t[..., None].expand(*t.shape, headdim)

    y = reference.selective_state_update_ref(
        ssm, x.unflatten(-1, (heads, -1)), wide(dt),
        -A_log.exp()[:, None, None].expand(heads, headdim, d_state),
        B.unflatten(-1, (-1, d_state)), C.unflatten(-1, (-1, d_state)), wide(D),
        z.unflatten(-1, (heads, -1)), wide(dt_bias), True,
    )  # fmt: skip
    return y.flatten(1), conv, ssm


def test_is_the_composition_of_its_parts(backend: str) -> None:
    inputs = step_inputs(batch=3, headdim=6)
    for got, want in zip(run(**inputs), composed(**inputs)):
        torch.testing.assert_close(got, want, **exact)


@law
@given(
    steps=st.integers(1, 9),
    before=st.integers(0, 6),
    width=st.integers(1, 5),
    more=st.integers(0, 3),
    groups=st.integers(1, 2),
    per_group=st.integers(1, 3),
)
def test_law_n_steps_are_the_convolution_and_the_scan(
    backend: str, steps: int, before: int, width: int, more: int, groups: int, per_group: int
) -> None:
    """From any place in the ring, around it and on: what a prefill of the tokens gives."""
    heads, headdim, d_state = groups * per_group, 3, 4
    inputs = step_inputs(2, heads, headdim, groups, d_state, width, width + more)
    dim, channels = heads * headdim, len(inputs["conv1d_weight"])
    tokens = randn(2, steps, inputs["zxbcdt"].shape[1], seed=9)
    past = randn(2, channels, width - 1, seed=10)
    conv, ssm = torch.full_like(inputs["conv_state"], 1e3), inputs["ssm_state"].clone()
    for k in range(width - 1):
        conv[..., (before - 1 - k) % (width + more)] = past[..., width - 2 - k]
    outs = []
    for t in range(steps):
        seqlens = torch.full((2,), before + t, device=device())
        step = {**inputs, "conv_state": conv, "ssm_state": ssm, "cache_seqlens": seqlens}
        outs.append(mamba2_decode_step(**{**step, "zxbcdt": tokens[:, t]}))
    z, xbc, dt = tokens.split([dim, channels, heads], dim=-1)
    mixed, last = reference.causal_conv1d_fn_ref(
        xbc.mT, inputs["conv1d_weight"], inputs["conv1d_bias"], None, past, True, None, "silu"
    )
    bc = groups * d_state
    x, B, C = mixed.mT.split([dim, bc, bc], dim=-1)
    y, state = reference.mamba_recurrence_ref(
        x.unflatten(-1, (heads, -1)), dt, -inputs["A_log"].exp(),
        B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1)), 16, inputs["D"],
        z.unflatten(-1, (heads, -1)), inputs["dt_bias"], inputs["ssm_state"],
        dt_softplus=True, return_final_states=True,
    )  # fmt: skip
    torch.testing.assert_close(torch.stack(outs, 1), y.flatten(2), **exact)
    torch.testing.assert_close(ssm, state.to(ssm.dtype), atol=1e-6, rtol=1e-6)
    for k in range(width - 1):
        assert torch.equal(conv[..., (before + steps - 1 - k) % (width + more)], last[..., -1 - k])


def test_what_stands_in_a_padding_entry_does_not_matter(backend: str) -> None:
    inputs = on_device(step_inputs(**VARIANTS["padding"]))
    inputs["zxbcdt"][0] = torch.nan
    y, *states = run(**inputs)
    assert torch.equal(y[0], torch.zeros_like(y[0]))
    assert all(bool(t.isfinite().all()) for t in (y, *states))


@law
@given(order=st.permutations(range(4)), padded=st.sets(st.integers(0, 3)))
def test_law_rows_are_each_alone(backend: str, order: list[int], padded: set[int]) -> None:
    inputs = step_inputs(4, 2, 3, 1)
    pool = step_inputs(6, 2, 3, 1)
    rows = [-1 if i in padded else order[i] + 1 for i in range(4)]
    conv, ssm = pool["conv_state"].clone(), pool["ssm_state"].clone()
    index = torch.tensor(rows, device=device())
    states = {"conv_state": conv, "ssm_state": ssm}
    y = mamba2_decode_step(**{**inputs, **states}, state_batch_indices=index)
    expected = {name: pool[name].clone() for name in states}
    for i, row in enumerate(rows):
        alone = torch.zeros_like(y[:1])
        if row >= 0:
            one = {k: inputs[k][i : i + 1] for k in ("zxbcdt", "cache_seqlens")}
            mine = {k: v[row : row + 1] for k, v in expected.items()}
            alone = mamba2_decode_step(**{**inputs, **one, **mine})
        torch.testing.assert_close(y[i], alone[0], **exact)
    for name, state in states.items():
        torch.testing.assert_close(state, expected[name], **exact)


def test_golden_decode_steps_of_the_mixer(backend: str) -> None:
    golden = on_device(load_file(DATA / "mamba_mixer.safetensors"))
    weight = {k.removeprefix("weight."): v for k, v in golden.items() if k.startswith("weight.")}
    conv, ssm = golden["conv_state"].clone(), golden["ssm_state"].clone()
    outs = []
    for t, u in enumerate(golden["step_input"].unbind(1)):
        y = mamba2_decode_step(
            u @ weight["in_proj.weight"].T, conv, ssm, torch.full((2,), t, device=device()),
            weight["conv1d.weight"].squeeze(1), weight["conv1d.bias"],
            weight["dt_bias"], weight["A_log"], weight["D"],
        )  # fmt: skip
        y = rmsnorm_fn(y, weight["norm.weight"], None, None, 1e-5, 160, False)
        outs.append(y @ weight["out_proj.weight"].T)
    torch.testing.assert_close(torch.stack(outs, 1), golden["step_output"], atol=2e-5, rtol=0)
    torch.testing.assert_close(ssm, golden["ssm_state_after_steps"], atol=2e-5, rtol=0)
    # four steps in a ring of four: it begins where it began
    torch.testing.assert_close(conv, golden["conv_state_after_steps"], atol=2e-5, rtol=0)


LAYOUTS = {
    "channels contiguous": lambda: (randn(2, 4, 32).mT, randn(2, 4, 3, 5).mT),
    "slices": lambda: (randn(2, 64, 8)[:, ::2, ::2], randn(2, 8, 10, 7)[:, ::2, 3:8, ::2][..., :3]),
    "batch last": lambda: (randn(32, 4, 2).permute(2, 0, 1), randn(4, 5, 3, 2).permute(3, 0, 1, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    inputs = step_inputs(
        zxbcdt=randn(2, 140, seed=1)[:, 5:117:2],
        conv1d_weight=randn(4, 32, seed=4).mT,
        cache_seqlens=torch.tensor(3, device=device()).expand(2),
        A_log=randn(1).expand(4),
        D=randn(8)[::2],
    )
    expected = naive_step(**inputs)
    conv, ssm = LAYOUTS[layout]()
    conv.copy_(inputs["conv_state"])
    ssm.copy_(inputs["ssm_state"])
    y = mamba2_decode_step(**{**inputs, "conv_state": conv, "ssm_state": ssm})
    for got, want in zip((y, conv, ssm), expected):
        torch.testing.assert_close(got, want, **exact)


def test_one_slot_of_the_ring_is_written_and_the_one_that_drops_out_is_not_read(
    backend: str,
) -> None:
    inputs = step_inputs(batch=1, cache_seqlens=torch.tensor([6], device=device()))
    inputs["conv_state"][..., 6 % 4] = torch.nan
    y, conv, _ = run(**inputs)
    assert bool(torch.isfinite(y).all())
    assert torch.equal(conv[0, :, 2], inputs["zxbcdt"][0, 20:52])
    for slot in (0, 1, 3):
        assert torch.equal(conv[..., slot], inputs["conv_state"][..., slot])


def test_a_nan_step_stays_one(backend: str) -> None:
    inputs = step_inputs(dt_limit=(0.1, 1.0))
    inputs["zxbcdt"][0, -1] = torch.nan
    y, _, ssm = run(**inputs)
    assert bool(y[0, 15:].isnan().all())
    assert bool(ssm[0, 3].isnan().all())
    assert bool(y[0, :15].isfinite().all() and y[1].isfinite().all())


def test_is_for_inference(backend: str) -> None:
    inputs = step_inputs()
    inputs["zxbcdt"].requires_grad_()
    inputs["A_log"].requires_grad_()
    assert not any(t.requires_grad for t in run(**inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(backend: str, dtype: torch.dtype) -> None:
    inputs = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in step_inputs(headdim=20, d_state=24).items()
    }
    assert all(torch.equal(a, b) for a, b in zip(run(**inputs), run(**inputs)))


@pytest.mark.parametrize(
    ("which", "shape", "strides"),
    [
        ("zxbcdt", (3, 56), (3 * 2**29, 1)),
        ("zxbcdt", (3, 56), (1, 2**27)),
        ("conv_state", (3, 32, 4), (3 * 2**29, 4, 1)),
        ("conv_state", (3, 32, 4), (2, 2**27, 7)),
        ("conv_state", (3, 32, 4), (2, 7, 2**30)),
        ("ssm_state", (3, 4, 5, 3), (3 * 2**29, 15, 3, 1)),
        ("ssm_state", (3, 4, 5, 3), (15, 2**30, 3, 1)),
        ("ssm_state", (3, 4, 5, 3), (1, 3, 2**30, 13)),
        ("ssm_state", (3, 4, 5, 3), (1, 3, 13, 3 * 2**29)),
        ("conv1d_weight", (32, 4), (2**27, 1)),
        ("conv1d_weight", (32, 4), (1, 3 * 2**29)),
    ],
)
def test_offsets_past_32_bits(
    backend: str, which: str, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    inputs = {
        k: v.bfloat16() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in step_inputs(batch=3).items()
    }
    inputs["cache_seqlens"] = inputs["cache_seqlens"].int()
    expected = run(**inputs)
    near = {k: inputs[k].clone() for k in ("conv_state", "ssm_state")}
    far = lazily(shape, strides, torch.bfloat16, device()).copy_(inputs[which])
    given = {**inputs, **near, which: far}
    y = mamba2_decode_step(**given)
    for got, want in zip((y, given["conv_state"], given["ssm_state"]), expected):
        assert_alike(got, want, rounding=COMPILED)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("variant", ["model", "bare", "rows"])
def test_compiles_in_one_graph(variant: str) -> None:
    inputs = on_device(step_inputs(**VARIANTS[variant]))
    inputs = {
        k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    expected = run(**inputs)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        got = torch.compile(run, fullgraph=True, backend=compiler)(**inputs)
        for a, b in zip(got, expected):
            torch.testing.assert_close(a, b)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("variant", ["model", "bare", "padding"])
def test_operator_is_sound(variant: str) -> None:
    with use_backend("triton"):
        given = {**on_device(step_inputs(**VARIANTS[variant]))}
        limits = given.pop("dt_limit", (0.0, float("inf")))
        rows = given.pop("state_batch_indices", None)
        silu = given.pop("activation", "silu") is not None
        torch.library.opcheck(_step.op, (*given.values(), *limits, silu, rows))


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    """The place in the ring lies on the device too: a replay goes on from where it stands."""
    with use_backend("triton"):
        inputs = step_inputs(headdim=80, d_state=128)
        start = {k: inputs[k].clone() for k in ("conv_state", "ssm_state", "cache_seqlens")}

        def step() -> tuple[torch.Tensor, ...]:
            for name, state in start.items():
                inputs[name].copy_(state)
            first = mamba2_decode_step(**inputs)
            inputs["cache_seqlens"].add_(1)
            return first, mamba2_decode_step(**inputs), inputs["ssm_state"].clone()

        check_capture(step)


def test_an_empty_batch(backend: str) -> None:
    y, conv, ssm = run(**step_inputs(batch=0))
    assert (y.shape, conv.shape, ssm.shape) == ((0, 20), (0, 32, 4), (0, 4, 5, 3))


def test_meta_tensors() -> None:
    inputs = {
        k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in step_inputs().items()
    }
    y = mamba2_decode_step(**inputs)
    assert (y.shape, y.dtype, y.device.type) == ((2, 20), torch.float64, "meta")


def test_parameters_can_be_read_by_name() -> None:
    names = "zxbcdt conv_state ssm_state cache_seqlens conv1d_weight conv1d_bias dt_bias A_log D"
    names += " dt_limit activation state_batch_indices"
    assert list(inspect.signature(mamba2_decode_step).parameters) == names.split()


IN = step_inputs()
ROW, CONV, SSM, WEIGHT, HEADS = (
    IN[k] for k in ("zxbcdt", "conv_state", "ssm_state", "conv1d_weight", "D")
)
INDEX = torch.zeros(2, dtype=torch.int32)
ERRORS = [
    ({"zxbcdt": ROW[0]}, r"step: zxbcdt must be \(batch, columns\), got shape \(56,\)"),
    ({"zxbcdt": ROW.int()}, "zxbcdt must be of dtype .*, got int32"),
    ({"zxbcdt": ROW[:, 1:]}, r"zxbcdt must be \(batch, 2 \* dim .*\) = \(2, 56\), got shape"),
    ({"ssm_state": SSM[:1]}, r"ssm_state must be \(batch, nheads, headdim, d_state\) = \(2, any"),
    ({"ssm_state": SSM.int()}, "ssm_state must be of dtype .*, got int32"),
    ({"conv_state": CONV[:1]}, r"conv_state must be \(batch, dim \+ .*, state_len\) = \(2, any"),
    ({"conv_state": CONV.half()}, "conv_state must be of dtype float64, got float16"),
    (
        {"conv_state": CONV[:, :-1]},
        r"conv_state must have 20 \+ 2 \* ngroups \* 3 channels, ngroups a divisor of 4, got 31",
    ),
    ({"conv_state": CONV[:, :20]}, "ngroups a divisor of 4, got 20"),
    ({"conv_state": torch.zeros(2, 38, 4).double()}, "ngroups a divisor of 4, got 38"),
    (
        {"conv_state": CONV[..., :3]},
        r"conv_state must have state_len of at least width = 4, .* \(the slot that is written must "
        r"hold no input that is still read\), got 3",
    ),
    ({"conv_state": CONV.to("meta")}, r"conv_state must lie on the device of zxbcdt \(cpu\)"),
    ({"cache_seqlens": INDEX[:1]}, r"cache_seqlens must be \(batch,\) = \(2\), got shape \(1,\)"),
    ({"cache_seqlens": INDEX.float()}, "cache_seqlens must be of dtype int32, int64, got float32"),
    ({"state_batch_indices": INDEX[:1]}, r"state_batch_indices must be \(batch,\) = \(2\)"),
    ({"state_batch_indices": INDEX + 2}, r"state_batch_indices must be below 2 .*, got \[2, 2\]"),
    ({"state_batch_indices": INDEX.half()}, "state_batch_indices must be of dtype int32, int64"),
    ({"conv1d_weight": WEIGHT[:-1]}, r"conv1d_weight must be \(dim .*, width\) = \(32, any\)"),
    ({"conv1d_weight": WEIGHT.int()}, "conv1d_weight must be of dtype .*, got int32"),
    ({"conv1d_weight": WEIGHT[:, :0]}, "width = 0, width at least 1"),
    ({"conv1d_bias": HEADS}, r"conv1d_bias must be \(dim .*\) = \(32\), got shape \(4,\)"),
    ({"conv1d_bias": ROW[0, :32].int()}, "conv1d_bias must be of dtype .*, got int32"),
    ({"activation": "gelu"}, "activation must be None, 'silu' or 'swish', got 'gelu'"),
    ({"dt_bias": HEADS[:2]}, r"dt_bias must be \(nheads,\) = \(4\), got shape \(2,\)"),
    ({"A_log": HEADS[:2]}, r"A_log must be \(nheads,\) = \(4\), got shape \(2,\)"),
    ({"D": HEADS.int()}, "D must be of dtype .*, got int32"),
    ({"D": HEADS.to("meta")}, r"D must lie on the device of zxbcdt \(cpu\), got meta"),
    ({"dt_limit": (0.5, 0.1)}, r"dt_limit must be \(least, greatest\) .*, got \(0.5, 0.1\)"),
    ({"dt_limit": (-1.0, 0.1)}, r"dt_limit must be \(least, greatest\) .*, got \(-1.0, 0.1\)"),
]


@pytest.mark.parametrize(("changes", "sentence"), ERRORS)
def test_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mamba2_decode_step(**{**IN, **changes})
