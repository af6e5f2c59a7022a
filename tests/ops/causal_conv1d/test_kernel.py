"""The kernels of causal_conv1d_fn: configurations, offsets, operators, compilation."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    check_capture,
    check_contract,
    compilers,
    device,
    every_config,
)
from tests.interpreter import lazily, poisoned_empty
from tests.ops.causal_conv1d import test_contract as contract
from tests.ops.causal_conv1d.common import (
    LEAVES,
    SEQ_IDX,
    blocks_of,
    conv_inputs,
    leaves_of,
    naive_conv,
)
from tests.ops.common import randn
from tvkernels import use_backend
from tvkernels.causal_conv1d import causal_conv1d_fn
from tvkernels.causal_conv1d.op import _bwd, _fwd


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
        for variant in ("states", "packed states"):
            contract.test_contract(variant, torch.float32)
        contract.test_contract("model", torch.bfloat16)
        contract.test_layouts("triton", "channel last", None)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize(
    ("variant", "channel_last", "parts"),
    [
        ("states", True, 1),
        ("states", False, 1 << 20),
        ("packed", True, 4),
        ("packed states", True, 4),
    ],
)
def test_several_programs(variant: str, channel_last: bool, parts: int) -> None:
    """More channels and tokens than one program takes; the sums in about `parts` parts."""
    with use_backend("triton"), poisoned_empty(), patch(f"{KERNEL}.LANES", parts * 520):
        x = randn(2, 70, 520).mT if channel_last else randn(2, 520, 70)
        inputs = {"x": x, "weight": randn(520, 4, seed=2), "activation": "silu"}
        if "states" in variant:
            inputs |= {"initial_states": randn(2, 520, 3, seed=4), "return_final_states": True}
        if "packed" in variant:
            inputs["seq_idx"] = torch.arange(140).reshape(2, 70) // 33
        check_contract(causal_conv1d_fn, naive_conv, inputs, wrt=leaves_of(inputs))


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("packed", [False, True])
def test_spans_shorter_than_the_filter(packed: bool) -> None:
    """Several programs read the initial states, but only one writes their gradient."""
    states = {"initial_states": randn(2, 6, 8, seed=4), "return_final_states": True}
    if packed:
        states["seq_idx"] = torch.tensor([[4] * 7 + [2] * 6, [0] * 13])
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
        for given in (
            (bias, None, before, True),
            (None, ids, None, False),
            (bias, ids, before, True),
        ):
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
    with pytest.raises(RuntimeError, match="only first order gradients, got a second derivative"):
        first.sum().backward()


def test_meta_tensors() -> None:
    x = torch.empty(2, 6, 100_000, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(6, 4, device="meta")
    out, final = causal_conv1d_fn(x, weight, return_final_states=True, activation="silu")
    assert (out.shape, out.dtype, out.stride()) == (x.shape, x.dtype, x.stride())
    assert (final.shape, final.dtype, final.device.type) == ((2, 6, 3), x.dtype, "meta")
