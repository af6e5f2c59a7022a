"""The scan's backward on Triton against float64 autograd of the recurrence written out below."""

from __future__ import annotations

import importlib.util
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.contract import (
    COMPILED,
    FLOORS,
    TRITON,
    assert_alike,
    cast,
    check_contract,
    device,
    errors,
    every_config,
    on_device,
)
from tests.interpreter import lazily, poisoned_empty
from tvkernels import use_backend
from tvkernels.ssd.reference import mamba_chunk_scan_combined_ref

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="needs a GPU, or TRITON_INTERPRET=1"),
]
if importlib.util.find_spec("triton") is not None and TRITON:
    from tvkernels.ssd import backward_kernel
Tensors = dict[str, Any]
FLOATS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Without bfloat16: where few numbers are compared, or one term makes a result, two roundings (of an
# operand and of the result) may exceed twice the error of one rounding that happened to be small.
# float16 runs the same code.
SHARP = [torch.float32, torch.float16]


@pytest.fixture(autouse=True)
def _triton():
    with use_backend("triton"), poisoned_empty():
        yield


def recurrence(
    x, dt, A, B, C, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
    cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, math.inf),
):  # fmt: skip
    """out, final_states and, with cu_seqlens, varlen_states: token by token."""
    wide = torch.promote_types(x.dtype, torch.float32)
    batch, seqlen, heads, headdim = x.shape
    ratio = heads // B.shape[2]
    step = dt.to(wide)
    if dt_bias is not None:
        step = step + dt_bias.to(wide)
    if dt_softplus:
        step = F.softplus(step)
    step = step.clamp(*dt_limit)
    b, c = (t.to(wide).repeat_interleave(ratio, 2) for t in (B, C))
    first = x.new_zeros(batch, heads, headdim, B.shape[3], dtype=wide)
    if initial_states is not None:
        first = initial_states.to(wide)

    def states(resets: torch.Tensor) -> list[torch.Tensor]:
        found = [first]
        for t in range(seqlen):
            kept = torch.where(resets[:, t, None, None, None], 0.0, found[-1])
            kept = kept * torch.exp(step[:, t] * A.to(wide))[..., None, None]
            new = (step[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
            found.append(kept + new)
        return found

    resets = torch.zeros(batch, seqlen, dtype=torch.bool, device=x.device)
    if seq_idx is not None:
        resets[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    found = states(resets)
    y = x.to(wide) * 0.0
    if seqlen:
        y = torch.stack([(s * c[:, t, :, None]).sum(-1) for t, s in enumerate(found[1:])], 1)
    if D is not None:
        y = y + x * (D if D.ndim == 2 else D[:, None]).to(wide)
    out = y.to(x.dtype)
    if z is not None:
        # at 16 bit PyTorch rounds y before it applies the gate
        out = out * F.silu(z)
    results = [out, found[-1]]
    if cu_seqlens is not None:
        borders = cu_seqlens.tolist()
        if seq_idx is None:
            alone = resets.clone()
            alone[:, [t for t in borders if 0 < t < seqlen]] = True
            found = states(alone)
        zero = torch.zeros_like(first[0])
        ends = [found[stop][0] if stop > start else zero for start, stop in pairwise(borders)]
        results.append(torch.stack(ends).to(C.dtype))
    return tuple(results)


class Scan(torch.autograd.Function):
    """The recurrence, with the gradients of the kernels."""

    @staticmethod
    def forward(ctx, names, options, *tensors):
        ctx.names, ctx.options = names, options
        ctx.save_for_backward(*tensors)
        return recurrence(**dict(zip(names, tensors)), **options)

    @staticmethod
    def backward(ctx, dout, dfinal, dvarlen=None):
        given = dict(zip(ctx.names, ctx.saved_tensors))
        grads = gradients(given | ctx.options, dout, dfinal, dvarlen)
        for name, tensor in given.items():
            if name in grads:
                assert grads[name].dtype == tensor.dtype
                assert grads[name].is_contiguous()
        return None, None, *(grads.get(name) for name in ctx.names)


def gradients(inputs: Tensors, dout, dfinal=None, dvarlen=None) -> Tensors:
    every = [inputs.get(name) for name in (*FLOATS, "seq_idx", "cu_seqlens")]
    options = (inputs.get("dt_softplus", False), inputs.get("dt_limit", (0.0, math.inf)))
    grads = backward_kernel.scan_backward(*every, *options, dout, dfinal, dvarlen)
    for name, grad in zip(FLOATS, grads):
        assert (grad is None) == (inputs.get(name) is None), name
    return {name: grad for name, grad in zip(FLOATS, grads) if grad is not None}


def scan(**inputs: Any) -> tuple[torch.Tensor, ...]:
    tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    options = {k: v for k, v in inputs.items() if k not in tensors}
    return Scan.apply(tuple(tensors), options, *tensors.values())


def check(inputs: Tensors, dtype: torch.dtype = torch.float32) -> None:
    wrt = [name for name in FLOATS if name in inputs]
    check_contract(scan, recurrence, inputs, dtype=dtype, wrt=wrt)


def inputs_of(
    batch=1, seqlen=40, heads=4, headdim=16, groups=2, d_state=16, decay=1.0, **more: Any
) -> Tensors:
    made = {
        "x": torch.randn(batch, seqlen, heads, headdim),
        "dt": torch.randn(batch, seqlen, heads) - 1,
        "A": -decay * (0.2 + torch.rand(heads)),
        "B": torch.randn(batch, seqlen, groups, d_state),
        "C": torch.randn(batch, seqlen, groups, d_state),
        "D": torch.randn(heads),
        "dt_bias": torch.randn(heads) * 0.3,
        "initial_states": torch.randn(batch, heads, headdim, d_state),
        "dt_softplus": True,
    }
    return on_device({k: v for k, v in (made | more).items() if v is not None})


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 32 tokens in two blocks, and of 16 for float32: the same code, on short inputs."""
    monkeypatch.setattr(backward_kernel, "CHUNK", 32)
    monkeypatch.setattr(backward_kernel, "BLOCK", 16)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_gradients(dtype, short_chunks):
    check(inputs_of(batch=2, seqlen=71), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [False, True], ids=["per head", "per channel"])
def test_gate_and_skip(dtype, columns, short_chunks):
    made = inputs_of(seqlen=45, heads=4, headdim=24)
    made["z"] = torch.randn_like(made["x"])
    if columns:
        made["D"] = torch.randn(4, 24)
    check(made, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_optional(dtype, short_chunks):
    given = {"D": None, "dt_bias": None, "initial_states": None, "dt_softplus": False}
    made = inputs_of(seqlen=50, **given)
    made["dt"] = made["dt"].exp()
    check(made, dtype)


KERNELS = [
    "backward_state_passing_kernel:scan_backward_state_passing_kernel",
    "backward_chunk_scan_kernel:scan_backward_roles_kernel",
    "backward_bmm_kernel:scan_backward_bmm_kernel",
]


@pytest.mark.parametrize(
    "config", every_config(*(f"tvkernels.ssd.{kernel}" for kernel in KERNELS)), ids=str
)
def test_every_configuration(config, short_chunks):
    from tvkernels.core.tune import forced

    made = inputs_of(seqlen=20, heads=2, groups=1)
    made["z"] = torch.randn_like(made["x"])
    with forced(config):
        check(made)


# channel tiles of 64 + 32 + 16, of 64 + 64, of 32 + 16 with 8 masked, one that is not full; larger ones
@pytest.mark.parametrize("headdim", [112, 128, 40, 3, 160, 192, 224, 256])
def test_head_dimensions(headdim, short_chunks):
    check(inputs_of(seqlen=35 if headdim <= 128 else 20, heads=2, groups=1, headdim=headdim))


@pytest.mark.parametrize(
    ("headdim", "d_state"),
    [(80, 128), (144, 256), (64, 48), (16, 256), (256, 256), (512, 16), (16, 512)],
)
def test_states_that_one_program_cannot_hold_are_cut(headdim, d_state, short_chunks):
    check(inputs_of(seqlen=20, heads=2, groups=1, headdim=headdim, d_state=d_state))


@pytest.mark.parametrize(("heads", "groups"), [(3, 1), (3, 3), (6, 2), (8, 1)])
def test_groups(heads, groups, short_chunks):
    check(inputs_of(seqlen=35, heads=heads, groups=groups))


def test_more_heads_than_a_program_of_vectors_holds(short_chunks):
    check(inputs_of(seqlen=20, heads=18, groups=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_as_they_are_shipped(dtype):
    check(inputs_of(seqlen=150, heads=2, groups=1), dtype)


@pytest.mark.parametrize("seqlen", [0, 1, 2, 16, 17, 32, 33])
@pytest.mark.parametrize("dtype", SHARP, ids=str)
def test_lengths(seqlen, dtype, short_chunks):
    check(inputs_of(seqlen=seqlen), dtype)


def test_no_batch(short_chunks):
    check(inputs_of(batch=0, seqlen=5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_resets(dtype, short_chunks):
    made = inputs_of(batch=2, seqlen=75)
    # a number that repeats is a new sequence; one sequence starts with a chunk, one has a single token
    lengths = ([5, 1, 26, 30, 13], [32, 20, 23])
    numbers = ([4, 1, 4, 0, 7], [1, 0, 1])
    rows = [
        torch.tensor(n).repeat_interleave(torch.tensor(length))
        for n, length in zip(numbers, lengths)
    ]
    check(made | {"seq_idx": torch.stack(rows).int()}, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("resets", [False, True], ids=["through", "seq_idx"])
def test_states_of_packed_sequences(dtype, resets, short_chunks):
    made = inputs_of(seqlen=75)
    # empty sequences first, in the middle and last; one ends with a chunk; tokens follow the last one
    made["cu_seqlens"] = torch.tensor([0, 0, 3, 4, 4, 32, 70, 70], dtype=torch.int32)
    if resets:
        made["seq_idx"] = torch.tensor([0] * 3 + [1] + [2] * 28 + [3] * 38 + [9] * 5)[None].int()
    check(made, dtype)


def test_states_of_two_sequences(short_chunks):
    check(inputs_of(seqlen=40) | {"cu_seqlens": torch.tensor([0, 21, 40])})


@pytest.mark.parametrize("seq_idx", [False, True])
def test_states_of_no_tokens(seq_idx, short_chunks):
    made = inputs_of(seqlen=0)
    made["cu_seqlens"] = torch.zeros(3, dtype=torch.int64)
    if seq_idx:
        made["seq_idx"] = torch.zeros(1, 0, dtype=torch.int32)
    check(made)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softplus", [False, True])
def test_clamped_steps(dtype, softplus, short_chunks):
    made = inputs_of(seqlen=50, dt_softplus=softplus, dt_limit=(0.2, 0.7))
    made["dt"] = made["dt"] + 0.3
    check(made, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decay", [0.01, 4.0])
def test_decays(decay, dtype, short_chunks):
    check(inputs_of(seqlen=70, decay=decay, heads=8), dtype)


@pytest.mark.parametrize("dtype", SHARP, ids=str)
def test_a_state_that_hardly_lasts_a_token(dtype, short_chunks):
    check(inputs_of(seqlen=70, decay=300.0, heads=8), dtype)


@pytest.mark.parametrize(
    ("dtype", "huge"), [(torch.float32, 3e4), (torch.bfloat16, 3e3), (torch.float16, 300.0)]
)
def test_huge_steps_among_small_ones(dtype, huge, short_chunks):
    made = inputs_of(seqlen=70, decay=2.0, heads=8, dt_softplus=False, dt_bias=None)
    made["dt"] = torch.where(torch.rand(1, 70, 8) < 0.1, huge, 0.05)
    check(made, dtype)


def test_strides(short_chunks):
    """Channels first, slices of one packed tensor, every other token, and one number for all."""
    heads, headdim, d_state, seqlen = 4, 16, 16, 40
    packed = torch.randn(2, seqlen, 2 * heads * headdim + 4 * d_state + heads)
    parts = [heads * headdim] * 2 + [2 * d_state] * 2 + [heads]
    x, z, B, C, dt = packed.split(parts, -1)
    made = inputs_of(batch=2, seqlen=seqlen)
    made |= {"x": x.unflatten(-1, (heads, headdim)), "z": z.unflatten(-1, (heads, headdim))}
    made |= {"B": B.unflatten(-1, (2, d_state)), "C": C.unflatten(-1, (2, d_state)), "dt": dt}
    check(made)
    made["x"] = torch.randn(2, heads, headdim, seqlen).permute(0, 3, 1, 2)
    made["B"] = torch.randn(2, d_state, 2, 2 * seqlen).permute(0, 3, 2, 1)[:, ::2]
    made["dt"] = torch.randn(2, seqlen, 1).expand(-1, -1, heads)
    made["C"] = torch.randn(2, 1, 1, d_state).expand(-1, seqlen, 2, -1)
    made["A"] = torch.tensor(-1.0).expand(heads)
    made["D"] = torch.tensor(0.7).expand(heads)
    made["dt_bias"] = torch.tensor(0.1).expand(heads)
    made["initial_states"] = torch.randn(2, d_state, headdim, heads).permute(0, 3, 2, 1)
    check(made)
    made["D"] = torch.randn(headdim).expand(heads, -1)
    check(made)


def test_cotangents_of_any_strides_and_one_of_two(short_chunks):
    made = inputs_of(seqlen=40)
    dout = torch.randn(1, 4, 16, 40, device=device()).permute(0, 3, 1, 2)
    dfinal = torch.randn(1, 4, 16, 16, device=device()).mT
    wrt = {n: t.double().requires_grad_() for n, t in made.items() if isinstance(t, torch.Tensor)}
    for a, b in ((dout, None), (dout * 0, dfinal), (dout.new_ones(()).expand(dout.shape), dfinal)):
        outs = recurrence(**made | wrt)
        total = (outs[0] * a).sum() + (0 if b is None else (outs[1] * b).sum())
        truth = torch.autograd.grad(total, list(wrt.values()), allow_unused=True)
        got = gradients(made, a, b)
        for name, want in zip(wrt, truth):
            want = torch.zeros_like(wrt[name]) if want is None else want
            torch.testing.assert_close(got[name].double(), want, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("gate", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_dtypes(gate, short_chunks):
    made = inputs_of(seqlen=40)
    made["z"] = torch.randn_like(made["x"]).to(gate)
    for name in ("x", "B", "C"):
        made[name] = made[name].bfloat16()
    dout = torch.randn_like(made["x"])
    got = gradients(made, dout)
    wide = {n: t.double() if isinstance(t, torch.Tensor) else t for n, t in made.items()}
    want = gradients(wide, dout.double())
    for name, tensor in made.items():
        if name in got:
            assert got[name].dtype == tensor.dtype
            error = (got[name].double() - want[name]).norm() / want[name].norm()
            assert error < 6e-3, name


def test_two_runs_give_the_same_bits(short_chunks):
    made = inputs_of(seqlen=70)
    dout, dfinal = torch.randn_like(made["x"]), torch.randn_like(made["initial_states"])
    first, second = gradients(made, dout, dfinal), gradients(made, dout, dfinal)
    assert all(torch.equal(first[name], second[name]) for name in first)


FAR = 3 * 2**29


@pytest.mark.parametrize("far", ["batch", "token", "head", "channel", "group"])
def test_offsets_past_2_31(far, short_chunks):
    """Three steps of a stride that itself fits int32: the last lies past 2^31 elements."""
    # heads of one group, or of as many
    axis = ["batch", "token", "head", "channel"].index(far.replace("group", "head"))
    sizes = [1, 2, 2, 2]
    sizes[axis] = 3
    batch, seqlen, heads, width = sizes
    groups = 1 if far == "head" else heads
    made = inputs_of(batch, seqlen, heads, headdim=width, groups=groups, d_state=width)
    made["D"] = torch.randn(heads, width, device=device())
    # on a GPU these tensors occupy real memory, so use 16-bit numbers and one tensor at a time
    made = cast(made, torch.bfloat16 if COMPILED else torch.float32)
    made["z"], made["dout"] = torch.randn_like(made["x"]), torch.randn_like(made["x"])
    made["dfinal"] = torch.randn_like(made["initial_states"], dtype=torch.float32)

    def run(given: Tensors) -> Tensors:
        inputs = {k: v for k, v in given.items() if k not in ("dout", "dfinal")}
        return gradients(inputs, given["dout"], given["dfinal"])

    def moved(tensor: torch.Tensor, axis: int) -> torch.Tensor:
        shape = list(tensor.shape)
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        strides[axis] = FAR
        return lazily(tuple(shape), tuple(strides), tensor.dtype, device()).copy_(tensor)

    axes = dict.fromkeys(("x", "z", "B", "C", "dout"), axis)
    if far != "channel":
        axes["dt"] = axis
    if far in ("head", "group", "channel"):
        axes |= {"D": axis - 2}
    if far in ("head", "group"):
        axes |= {"A": 0, "dt_bias": 0}
    if far != "token":
        axes |= dict.fromkeys(("initial_states", "dfinal"), [0, 0, 1, 2][axis])
    want = run(made)
    for names in [[name] for name in axes] if COMPILED else [list(axes)]:
        got = run(made | {name: moved(made[name], axes[name]) for name in names})
        for name, tensor in want.items():
            assert_alike(got[name], tensor, rounding=COMPILED)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_errors_do_not_grow_with_length(dtype, short_chunks, monkeypatch):
    """Over 64 chunks and over 1,000, of states that last for hundreds of tokens."""
    monkeypatch.setattr(backward_kernel, "CHUNK", 16)
    found = []
    for chunks in (64, 1000):
        seqlen = chunks * 16 - 3
        made = cast(inputs_of(seqlen=seqlen, heads=1, groups=1, decay=0.02), dtype)
        dout = torch.randn_like(made["x"])
        dfinal = torch.randn_like(made["initial_states"], dtype=torch.float32)
        got = gradients(made, dout, dfinal)
        exact = cast(made, torch.float64)
        leaves = {n: t.requires_grad_() for n, t in exact.items() if n in got}
        # the PyTorch form by chunks, which other tests hold to a loop over tokens
        out, last = mamba_chunk_scan_combined_ref(**exact, chunk_size=64, return_final_states=True)
        total = (out * dout).sum() + (last * dfinal).sum()
        truth = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()))))
        found.append({name: errors(got[name], truth[name])[0] for name in got})
    # sums over all tokens may cancel; how much depends on the values and not on the length
    for name in ("x", "dt", "B", "C", "initial_states"):
        short = found[0][name]
        assert found[1][name] <= 1.5 * short + FLOORS[dtype], (name, short, found[1][name])
