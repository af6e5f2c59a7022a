"""causal_conv1d_fn against a float64 tap loop, torch's conv1d, a golden and its laws."""

from __future__ import annotations

import inspect
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    check_capture,
    check_contract,
    compilers,
    device,
    every_config,
    on_device,
)
from tests.footprint import largest_tensor
from tests.interpreter import lazily, poisoned_empty
from tests.ops.common import DATA, DTYPES, exact, law, randn
from tvkernels import use_backend
from tvkernels.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from tvkernels.causal_conv1d.op import _bwd, _fwd


def blocks_of(elements: int) -> Any:
    """Blocks so small that a test's input has several."""
    room = "tvkernels.causal_conv1d.reference"
    return patch.multiple(room, BLOCK_ELEMENTS=elements, MIN_ROWS=1)


def ways(backend: str, elements: int) -> list[int]:
    """Sizes of blocks to try: the reference has two paths, the kernels know no block."""
    return [1 << 19, elements] if backend == "reference" else [1 << 19]


def naive_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
) -> Any:
    """Token by token and tap by tap in one wide dtype, with one rounding at the end."""
    wide = torch.promote_types(x.dtype, torch.float32)
    (batch, dim, seqlen), width = x.shape, weight.shape[1]
    past = x.new_zeros(batch, dim, width - 1) if initial_states is None else initial_states
    inputs = [past[:, :, i] for i in range(width - 1)] + [x[:, :, t] for t in range(seqlen)]
    outs = []
    for t in range(seqlen):
        y = x.new_zeros(batch, dim, dtype=wide) if bias is None else bias.to(wide)
        for k in range(width):
            term = weight[:, width - 1 - k].to(wide) * inputs[width - 1 + t - k].to(wide)
            if seq_idx is not None:
                ours = (seq_idx[:, t] == seq_idx[:, t - k]) if k <= t else seq_idx[:, t] < -99
                term = torch.where(ours[:, None], term, 0.0)
            y = y + term
        y = y / (1 + torch.exp(-y)) if activation else y
        outs.append(y if seq_idx is None else torch.where(seq_idx[:, t, None] < 0, 0.0, y))
    out = torch.stack(outs, dim=2).to(x.dtype)
    if not return_final_states:
        return out
    return out, torch.cat([past, x], dim=2)[..., seqlen:]


def conv_inputs(seqlen: int = 23, width: int = 4, **changes: Any) -> dict[str, Any]:
    inputs = {
        "x": randn(2, 6, seqlen, seed=1),
        "weight": randn(6, width, seed=2),
        "bias": randn(6, seed=3),
        "activation": "silu",
    }
    return {**inputs, **changes}


SEQ_IDX = torch.tensor([[0] * 2 + [1] * 9 + [5] * 1 + [2] * 11, [0] * 18 + [-1] * 5])
STATES = {"initial_states": randn(2, 6, 3, seed=4), "return_final_states": True}
VARIANTS = {
    "model": {},
    "linear": {"activation": None, "bias": None},
    "swish": {"activation": "swish", "bias": None},
    "states": STATES,
    "final only": {"return_final_states": True},
    "packed": {"seq_idx": SEQ_IDX.int()},
    "packed int64": {"seq_idx": SEQ_IDX, "bias": None},
}


LEAVES = ("x", "weight", "bias", "initial_states")


def leaves_of(inputs: dict[str, Any]) -> list[str]:
    return [name for name in LEAVES if inputs.get(name) is not None]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, dtype: torch.dtype) -> None:
    inputs = conv_inputs(**VARIANTS[variant])
    check_contract(causal_conv1d_fn, naive_conv, inputs, dtype=dtype, wrt=leaves_of(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract_of_the_reference_by_blocks(variant: str, dtype: torch.dtype) -> None:
    with blocks_of(60):
        test_contract(variant, dtype)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
def test_any_width_also_longer_than_the_sequence_or_a_block(backend: str, width: int) -> None:
    for seqlen in (1, 2, 7):
        states = {"initial_states": randn(2, 6, width - 1), "return_final_states": True}
        inputs = conv_inputs(seqlen, width, **states)
        for block in ways(backend, 24):
            with blocks_of(block):
                check_contract(causal_conv1d_fn, naive_conv, inputs, wrt=LEAVES)


LAYOUTS = {
    "contiguous": lambda: randn(2, 6, 23),
    "channel last": lambda: randn(2, 23, 6).mT,
    "slice of a projection": lambda: randn(2, 23, 20)[..., 5:11].mT,
    "slice of tokens": lambda: randn(2, 6, 40)[..., 8:31],
    "batch last": lambda: randn(6, 23, 2).permute(2, 0, 1),
    "strided": lambda: randn(2, 12, 46)[:, ::2, ::2],
    "one for the batch": lambda: randn(6, 23).expand(2, 6, 23),
    "one for all tokens": lambda: randn(2, 6, 1).expand(2, 6, 23),
    "one for all channels": lambda: randn(2, 1, 23).expand(2, 6, 23),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    inputs = conv_inputs(x=LAYOUTS[layout](), **STATES)
    odd = {"initial_states": randn(2, 3, 6).mT, "weight": randn(4, 6).mT}
    for block in ways(backend, 60):
        with blocks_of(block):
            for wrt in ((), ("x", "weight", "initial_states")):
                check_contract(causal_conv1d_fn, naive_conv, inputs, wrt=wrt)
            odd["bias"] = randn(1).expand(6)
            check_contract(causal_conv1d_fn, naive_conv, {**inputs, **odd})


def test_output_layout_is_the_inputs(backend: str) -> None:
    for block in ways(backend, 60):
        with blocks_of(block):
            for x in (randn(2, 6, 23), randn(2, 23, 6).mT):
                out, final = causal_conv1d_fn(x, randn(6, 4), return_final_states=True)
                assert out.stride() == x.stride()
                assert final.mT.is_contiguous()
            out = causal_conv1d_fn(randn(2, 23, 20)[..., :6].mT, randn(6, 4))
            assert out.mT.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_torch(backend: str, dtype: torch.dtype) -> None:
    x, weight, bias = randn(2, 48, 300).to(dtype), randn(48, 4).to(dtype), randn(48).to(dtype)
    wide = F.conv1d(x.double(), weight.double()[:, None], bias.double(), padding=3, groups=48)
    truth = F.silu(wide[..., :300])
    got = causal_conv1d_fn(x, weight, bias, activation="silu")
    torch.testing.assert_close(got, truth.to(dtype))


def test_final_states_do_not_share_the_inputs_memory(backend: str) -> None:
    x = randn(1, 6, 23)
    before = x.clone()
    _, final = causal_conv1d_fn(x, randn(6, 4), return_final_states=True)
    final.zero_()
    assert torch.equal(x, before)


def test_final_states_out_is_written_and_returned(backend: str) -> None:
    rooms = (torch.full((2, 6, 3), torch.nan), torch.full((2, 3, 9), torch.nan).mT[:, 1:7])
    for room in on_device(rooms):
        x = randn(2, 6, 23).float()
        _, final = causal_conv1d_fn(x, randn(6, 4), return_final_states=True, final_states_out=room)
        assert final is room
        assert torch.equal(room, x[..., -3:])


def test_what_stands_in_another_sequence_does_not_leak(backend: str) -> None:
    x = randn(1, 6, 10)
    x[..., :4] = torch.inf
    x[..., 8:] = torch.nan
    seq_idx = torch.tensor([[0] * 4 + [1] * 4 + [-1] * 2], device=device())
    out = causal_conv1d_fn(x, randn(6, 4), randn(6, seed=1), seq_idx)
    alone = naive_conv(x[..., 4:8], randn(6, 4), randn(6, seed=1))
    torch.testing.assert_close(out[..., 4:8], alone, **exact)
    assert torch.equal(out[..., 8:], torch.zeros_like(x[..., 8:]))


def test_weight_in_float32_beside_a_16_bit_input(backend: str) -> None:
    inputs = conv_inputs()
    x, weight, bias = inputs["x"].bfloat16(), inputs["weight"].float(), inputs["bias"].float()
    out = causal_conv1d_fn(x, weight, bias)
    assert torch.equal(out, naive_conv(x.double(), weight.double(), bias.double()).bfloat16())


def project_and_split(golden: dict[str, torch.Tensor], u: torch.Tensor) -> torch.Tensor:
    return (u @ golden["weight.in_proj.weight"].T)[..., 320 : 320 + 448].mT


def test_golden_mixer_convolution(backend: str) -> None:
    golden = on_device(load_file(DATA / "mamba_mixer.safetensors"))
    xbc = project_and_split(golden, golden["input"])
    weight, bias = golden["weight.conv1d.weight"].squeeze(1), golden["weight.conv1d.bias"]
    parts = [golden[f"conv_activated_{name}"].flatten(-2) for name in "xBC"]
    options = {"return_final_states": True, "activation": "silu"}
    for block in ways(backend, 5000):
        with blocks_of(block):
            out, final = causal_conv1d_fn(xbc, weight, bias, **options)
        torch.testing.assert_close(out.mT, torch.cat(parts, dim=-1), atol=2e-5, rtol=0)
        torch.testing.assert_close(final, golden["conv_state"][..., 1:], atol=2e-5, rtol=0)


def test_parameters_can_be_read_by_name() -> None:
    names = "x weight bias seq_idx initial_states return_final_states final_states_out activation"
    assert list(inspect.signature(causal_conv1d_fn).parameters) == names.split()


@law
@given(
    seqlen=st.integers(1, 12),
    width=st.integers(1, 5),
    extra=st.integers(0, 3),
    circular=st.booleans(),
    step=st.integers(1, 5),
    activation=st.sampled_from([None, "silu"]),
)
def test_law_fn_is_n_updates(
    backend: str,
    seqlen: int,
    width: int,
    extra: int,
    circular: bool,
    step: int,
    activation: str | None,
) -> None:
    x, weight, bias = randn(2, 3, seqlen), randn(3, width, seed=1), randn(3, seed=2)
    initial = randn(2, 3, width - 1, seed=3)
    whole, final = causal_conv1d_fn(x, weight, bias, None, initial, True, None, activation)
    state = x.new_zeros(2, 3, width - 1 + extra + circular)
    # slots before 0, taken around the circle, are the last ones
    state[..., state.shape[2] - (width - 1) :] = initial
    outs = []
    for t in range(0, seqlen, step):
        cache_seqlens = torch.tensor([t, t], device=device()) if circular else None
        outs.append(
            causal_conv1d_update(
                x[..., t : t + step], state, weight, bias, activation, cache_seqlens
            )
        )
    torch.testing.assert_close(torch.cat(outs, dim=2), whole, **exact)
    if not circular:
        assert torch.equal(state[..., state.shape[2] - (width - 1) :], final)


@law
@given(
    seqlen=st.integers(1, 20),
    cut=st.integers(0, 20),
    width=st.integers(1, 6),
    block=st.integers(1, 40),
)
def test_law_split_anywhere(backend: str, seqlen: int, cut: int, width: int, block: int) -> None:
    cut = min(cut, seqlen)
    x, weight = randn(2, 3, seqlen), randn(3, width, seed=1)
    initial = randn(2, 3, width - 1, seed=2)
    whole, final = naive_conv(x, weight, None, None, initial, True)
    with blocks_of(block):
        first, middle = causal_conv1d_fn(x[..., :cut], weight, None, None, initial, True)
        second, last = causal_conv1d_fn(x[..., cut:], weight, None, None, middle, True)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole, **exact)
    assert torch.equal(last, final)


@law
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    width=st.integers(1, 5),
    block=st.integers(1, 60),
)
def test_law_packed_is_each_alone(backend: str, lengths: list[int], width: int, block: int) -> None:
    x, weight, bias = randn(1, 3, sum(lengths)), randn(3, width, seed=1), randn(3, seed=2)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seq_idx = ids[None].to(device())
    with blocks_of(block):
        packed = causal_conv1d_fn(x, weight, bias, seq_idx, activation="silu")
    alone = [naive_conv(part, weight, bias, activation="silu") for part in x.split(lengths, dim=2)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=2), **exact)


def test_memory_is_linear_in_length() -> None:
    def forward_and_backward(seqlen: int) -> int:
        x = randn(1, seqlen, 20)[..., :8].mT.float().requires_grad_()
        weight = randn(8, 4).float().requires_grad_()
        return largest_tensor(
            lambda: causal_conv1d_fn(x, weight, activation="silu").square().sum().backward()
        )

    with blocks_of(256):
        assert forward_and_backward(500) == 500 * 8
        assert forward_and_backward(4000) == 4000 * 8


@pytest.mark.usefixtures("backend")
def test_compiles_in_one_graph() -> None:
    seq_idx = SEQ_IDX.int().to(device())

    def whole(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, final = causal_conv1d_fn(x, weight, return_final_states=True, activation="silu")
        return out + causal_conv1d_fn(x, weight, weight[:, 0], seq_idx), final

    tensors = randn(2, 6, 23).float(), randn(6, 4, seed=1).float()
    args = [t.requires_grad_() for t in tensors]
    with blocks_of(60):
        expected = whole(*args)
    cotangents = [randn(*y.shape, seed=3).float() for y in expected]
    want = torch.autograd.grad(expected, args, cotangents)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        with blocks_of(60):
            got = torch.compile(whole, fullgraph=True, backend=compiler)(*args)
        torch.testing.assert_close(got, expected)
        for a, b in zip(torch.autograd.grad(got, args, cotangents), want):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


KERNEL = "tvkernels.causal_conv1d.kernel"
KERNELS = [f"{KERNEL}:conv_{way}_kernel" for way in ("forward", "backward")]


@pytest.mark.triton
@pytest.mark.parametrize("config", every_config(*KERNELS), ids=str)
def test_every_configuration(config: Any) -> None:
    from tvkernels.core.tune import forced

    with use_backend("triton"), poisoned_empty(), forced(config):
        for variant in ("states", "packed"):
            test_contract(variant, torch.float32)
        test_contract("model", torch.bfloat16)
        test_layouts("triton", "channel last")


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize(
    ("variant", "channel_last", "parts"),
    [("states", True, 1), ("states", False, 1 << 20), ("packed", True, 4)],
)
def test_several_programs(variant: str, channel_last: bool, parts: int) -> None:
    """More channels and tokens than one program takes; the sums in about `parts` parts."""
    with use_backend("triton"), poisoned_empty(), patch(f"{KERNEL}.LANES", parts * 520):
        x = randn(2, 70, 520).mT if channel_last else randn(2, 520, 70)
        inputs = {"x": x, "weight": randn(520, 4, seed=2), "activation": "silu"}
        if variant == "states":
            inputs |= {"initial_states": randn(2, 520, 3, seed=4), "return_final_states": True}
        else:
            inputs["seq_idx"] = torch.arange(140).reshape(2, 70) // 33
        check_contract(causal_conv1d_fn, naive_conv, inputs, wrt=leaves_of(inputs))


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_spans_shorter_than_the_filter() -> None:
    """What lies before token 0 is in reach of several programs, and the gradient of one alone."""
    states = {"initial_states": randn(2, 6, 8, seed=4), "return_final_states": True}
    with use_backend("triton"), poisoned_empty(), patch(f"{KERNEL}.SPAN", 4):
        check_contract(causal_conv1d_fn, naive_conv, conv_inputs(13, 9, **states), wrt=LEAVES)


def every_result(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Outputs and gradients on the same numbers at each call."""
    x = randn(2, 70, 20)[..., 5:11].mT.to(dtype)
    leaves = [x, randn(6, 4).to(dtype), randn(6).to(dtype), randn(2, 6, 3).to(dtype)]
    x, weight, bias, before = leaves = [t.detach().requires_grad_() for t in leaves]
    outs = causal_conv1d_fn(x, weight, bias, None, before, True, activation="silu")
    cotangents = [randn(*out.shape, seed=5).to(dtype) for out in outs]
    return (*outs, *torch.autograd.grad(outs, leaves, cotangents))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(backend: str, dtype: torch.dtype) -> None:
    assert all(torch.equal(a, b) for a, b in zip(every_result(dtype), every_result(dtype)))


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    with use_backend("triton"):
        leaves = [randn(2, 70, 6).mT, randn(6, 4), randn(6), randn(2, 6, 3)]
        leaves = [t.bfloat16().requires_grad_() for t in leaves]
        x, weight, bias, before = leaves
        dout, dafter = randn(2, 6, 70).bfloat16(), randn(2, 6, 3).bfloat16()

        def step() -> tuple[torch.Tensor, ...]:
            outs = causal_conv1d_fn(x, weight, bias, None, before, True, activation="silu")
            return (*outs, *torch.autograd.grad(outs, leaves, (dout, dafter)))

        check_capture(step)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("channel_last", [True, False])
def test_operators_are_sound(channel_last: bool) -> None:
    with use_backend("triton"):
        x = randn(2, 7, 6).mT if channel_last else randn(2, 6, 7)
        dout, weight, bias, before = randn(2, 6, 7), randn(6, 4), randn(6), randn(2, 6, 3)
        ids = torch.zeros(2, 7, dtype=torch.int32, device=device())
        for given in ((bias, None, before, True), (None, ids, None, False)):
            torch.library.opcheck(_fwd.op, (x, weight, *given, True))
            dafter = before if given[3] else None
            torch.library.opcheck(_bwd.op, (dout, dafter, x, weight, *given[:3], True))


FAR = 3 * 2**29
FAR_STRIDES = {"token": (24, 1, FAR), "channel": (24, FAR, 1), "batch": (FAR, 1, 8)}


@pytest.mark.parametrize("which", ["x", "dout", "seq_idx", "before", "dafter"])
@pytest.mark.parametrize("far", FAR_STRIDES)
def test_offsets_past_32_bits(backend: str, far: str, which: str) -> None:
    """The stride itself fits 32 bits, so that only its product with the index does not."""
    tensors = {n: randn(3, 3, 3, seed=i).bfloat16() for i, n in enumerate(("x", "dout"))}
    tensors |= {n: randn(3, 3, 3, seed=i).bfloat16() for i, n in enumerate(("before", "dafter"))}
    ids = torch.tensor([[0, 0, 0], [0, 1, 1], [2, 2, 3]], dtype=torch.int32)
    tensors["seq_idx"] = ids.to(device())
    packed = which == "seq_idx"

    def run(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        x, before = (given[n].detach().requires_grad_() for n in ("x", "before"))
        weight, bias = (t.float().requires_grad_() for t in (randn(3, 4), randn(3)))
        leaves = [x, weight, bias]
        if packed:
            out = causal_conv1d_fn(x, weight, bias, given["seq_idx"], activation="silu")
            return [out, *torch.autograd.grad(out, leaves, given["dout"])]
        outs = causal_conv1d_fn(x, weight, bias, None, before, True, activation="silu")
        cotangents = (given["dout"], given["dafter"])
        return [*outs, *torch.autograd.grad(outs, [*leaves, before], cotangents)]

    near = tensors[which]
    strides = tuple(s for s, name in zip(FAR_STRIDES[far], "bct") if near.ndim == 3 or name != "c")
    distant = lazily(tuple(near.shape), strides, near.dtype, device()).copy_(near)
    for got, expected in zip(run({**tensors, which: distant}), run(tensors)):
        # PyTorch sums in an order that depends on the strides
        assert_alike(got, expected, rounding=COMPILED or backend == "reference")


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("far", FAR_STRIDES)
def test_offsets_of_results_past_32_bits(far: str) -> None:
    from tvkernels.causal_conv1d.kernel import conv_backward, conv_forward

    with use_backend("triton"):
        x, dout, weight = randn(3, 3, 3).bfloat16(), randn(3, 3, 3, seed=1).bfloat16(), randn(3, 4)
        leaf = x.clone().requires_grad_()
        near = causal_conv1d_fn(leaf, weight)
        (want,) = torch.autograd.grad(near, leaf, dout)
        out = lazily((3, 3, 3), FAR_STRIDES[far], x.dtype, device())
        conv_forward(out, None, x, weight, None, None, None, False)
        assert_alike(out, near, rounding=COMPILED)
        # the same memory: on a GPU it is real
        dx = out.fill_(torch.nan)
        conv_backward(dx, None, dout, None, x, weight, None, None, None, False)
        assert_alike(dx, want, rounding=COMPILED)


def test_second_order_gradients_say_that_they_are_absent(backend: str) -> None:
    x = randn(1, 6, 40).requires_grad_()
    with blocks_of(64):
        y = causal_conv1d_fn(x, randn(6, 4))
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("shape", [(0, 6, 7), (2, 6, 0), (2, 0, 7)])
def test_nothing_to_do(backend: str, shape: tuple[int, int, int]) -> None:
    """Without a token the states stay as they were, and their gradient is what comes back."""
    before = randn(shape[0], shape[1], 3).requires_grad_()
    x, weight = randn(*shape).requires_grad_(), randn(shape[1], 4).requires_grad_()
    out, final = causal_conv1d_fn(x, weight, None, None, before, True, None, "silu")
    assert out.shape == shape
    (out.sum() + 2 * final.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    if shape[2] == 0:
        assert torch.equal(final, before)
        assert torch.equal(before.grad, torch.full_like(before, 2.0))


def test_meta_tensors() -> None:
    x = torch.empty(2, 6, 100_000, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(6, 4, device="meta")
    out, final = causal_conv1d_fn(x, weight, return_final_states=True, activation="silu")
    assert (out.shape, out.dtype, out.stride()) == (x.shape, x.dtype, x.stride())
    assert (final.shape, final.dtype, final.device.type) == ((2, 6, 3), x.dtype, "meta")


X, W, S = torch.zeros(2, 8, 5), torch.zeros(8, 4), torch.zeros(2, 8, 3)
IDS = torch.zeros(2, 5, dtype=torch.int32)
META = torch.zeros(2, 8, 3, device="meta")
FN_ERRORS = [
    ({"x": X[0]}, r"causal_conv1d_fn: x must be \(batch, dim, seqlen\), got shape \(8, 5\)"),
    ({"x": X.int()}, "causal_conv1d_fn: x must be of dtype .*, got int32"),
    ({"weight": W[:, None]}, r"weight must be \(dim, width\) = \(8, any\), got shape \(8, 1, 4\)"),
    ({"weight": W[:4]}, r"weight must be \(dim, width\) = \(8, any\), got shape \(4, 4\)"),
    ({"weight": W.int()}, "weight must be of dtype .*, got int32"),
    ({"weight": W[:, :0]}, "weight must have a width of at least 1, got 0"),
    ({"weight": W.to("meta")}, r"weight must lie on the device of x \(cpu\), got meta"),
    ({"bias": W}, r"bias must be \(dim,\) = \(8\), got shape \(8, 4\)"),
    ({"bias": W[:, 0].int()}, "bias must be of dtype .*, got int32"),
    ({"activation": "relu"}, "activation must be None, 'silu' or 'swish', got 'relu'"),
    ({"seq_idx": IDS[:1]}, r"seq_idx must be \(batch, seqlen\) = \(2, 5\), got shape \(1, 5\)"),
    ({"seq_idx": IDS.float()}, "seq_idx must be of dtype int32, int64, got float32"),
    ({"seq_idx": IDS, "initial_states": S}, "initial_states must be None with seq_idx"),
    (
        {"seq_idx": IDS, "return_final_states": True},
        "return_final_states must be False with seq_idx .*; use causal_conv1d_varlen_states",
    ),
    ({"initial_states": S[..., :2]}, r"initial_states must be \(batch, dim, width - 1\) ="),
    ({"initial_states": S.half()}, "initial_states must be of dtype float32, got float16"),
    ({"initial_states": META}, r"initial_states must lie on the device of x \(cpu\)"),
    ({"final_states_out": S[:1]}, r"final_states_out must be \(batch, dim, width - 1\) ="),
    ({"final_states_out": S.half()}, "final_states_out must be of dtype float32, got float16"),
]


@pytest.mark.parametrize(("changes", "sentence"), FN_ERRORS)
def test_fn_errors(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        causal_conv1d_fn(**{"x": X, "weight": W, **changes})
