"""The kernels of the norms: configurations, offsets, operators, compilation."""

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
    compilers,
    device,
    every_config,
)
from tests.interpreter import lazily, poisoned_empty
from tests.ops.common import randn
from tests.ops.rmsnorm import test_contract as contract
from tests.ops.rmsnorm.common import BLOCK
from tvkernels import use_backend
from tvkernels.rmsnorm import layernorm_fn, rms_norm, rmsnorm_fn
from tvkernels.rmsnorm.op import _gated_bwd, _gated_fwd, _residual_bwd, _residual_fwd


def test_second_order_gradients_say_that_they_are_absent(backend: str) -> None:
    x = randn(40, 16).requires_grad_()
    with patch(BLOCK, 64):
        y = rmsnorm_fn(x, torch.ones(16, device=device()), None)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="only first order gradients, got a second derivative"):
        first.sum().backward()


@pytest.mark.usefixtures("backend")
def test_compiles_in_one_graph() -> None:
    def step(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        normed, residual = rms_norm(x, weight, 1e-5, z)
        gated = rmsnorm_fn(normed, weight, None, z, 1e-5, 8, False)
        return layernorm_fn(gated + residual, weight, weight)

    tensors = randn(6, 16), randn(16, seed=1), randn(6, 16, seed=2)
    args = [t.float().requires_grad_() for t in tensors]
    weights = randn(6, 16, seed=3).float()
    with patch(BLOCK, 32):
        expected = step(*args)
    want = torch.autograd.grad((expected * weights).sum(), args)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        with patch(BLOCK, 32):
            got = torch.compile(step, fullgraph=True, backend=compiler)(*args)
        torch.testing.assert_close(got, expected)
        for a, b in zip(torch.autograd.grad((got * weights).sum(), args), want):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


KERNELS = [f"tvkernels.rmsnorm.kernel:norm_{way}_kernel" for way in ("forward", "backward")]


@pytest.mark.triton
@pytest.mark.parametrize("config", every_config(*KERNELS), ids=str)
def test_every_configuration(config: Any) -> None:
    from tvkernels.core.tune import forced

    with use_backend("triton"), poisoned_empty(), forced(config):
        contract.test_contract("model", True, torch.float32)
        contract.test_every_group_size(37)
        contract.test_rms_norm_with_residual(torch.bfloat16)


def model_tensors(rows: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """x, z as a slice of a wider product, weight, and a cotangent."""
    x, wide, dout = (randn(rows, n, seed=n).to(dtype) for n in (dim, 2 * dim + 16, dim + 1))
    return [x, wide[:, 16 : 16 + dim], randn(dim).to(dtype), dout[:, :dim]]


def every_result(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Outputs and gradients of both norms on the same numbers at each call."""
    x, z, weight, dout = model_tensors(40, 96, dtype)
    leaves = [t.detach().requires_grad_() for t in (x, weight, z)]
    out = layernorm_fn(leaves[0], leaves[1], leaves[1], leaves[2], 1e-5, 48, False)
    normed, total = rms_norm(leaves[0], leaves[1], 1e-5, leaves[2])
    grads = torch.autograd.grad((out, normed, total), leaves, (dout, dout, dout))
    return (out, normed, total, *grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(backend: str, dtype: torch.dtype) -> None:
    assert all(torch.equal(a, b) for a, b in zip(every_result(dtype), every_result(dtype)))


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    with use_backend("triton"):
        x, z, weight, _ = model_tensors(40, 96, torch.bfloat16)
        leaves = [t.detach().requires_grad_() for t in (x, weight, z)]

        def step() -> tuple[torch.Tensor, ...]:
            out = layernorm_fn(leaves[0], leaves[1], leaves[1], leaves[2], 1e-5, 48, False)
            normed, total = rms_norm(leaves[0], leaves[1], 1e-5, leaves[2])
            return (
                out,
                normed,
                total,
                *torch.autograd.grad((out, normed, total), leaves, (x,) * 3),
            )

        check_capture(step)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_operators_are_sound() -> None:
    with use_backend("triton"):
        x, z, weight, dout = model_tensors(5, 24, torch.float32)
        form = (1e-5, 8, False, True)
        for gate, bias in ((z, None), (None, weight), (z, weight)):
            torch.library.opcheck(_gated_fwd.op, (x, weight, bias, gate, *form))
            torch.library.opcheck(_gated_bwd.op, (dout, x, weight, bias, gate, *form))
        torch.library.opcheck(_residual_fwd.op, (x, weight, z, 1e-5))
        torch.library.opcheck(_residual_bwd.op, (dout, z, x, weight, 1e-5))


@pytest.mark.parametrize("which", ["x", "z", "dout"])
def test_offsets_past_32_bits(backend: str, which: str) -> None:
    """The stride itself fits 32 bits, so that only the product with the row does not."""
    dim, far = 24, 3 * 2**29
    tensors = {n: randn(3, dim, seed=i).bfloat16() for i, n in enumerate(("x", "z", "dout"))}
    weight = randn(dim, seed=4).bfloat16().requires_grad_()

    def run(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        x, z = (given[n].detach().requires_grad_() for n in ("x", "z"))
        gated = rmsnorm_fn(x, weight, None, z, 1e-5, 8, False)
        normed, total = rms_norm(x, weight, 1e-5, z)
        outputs = (gated, normed, total)
        grads = torch.autograd.grad(outputs, (x, z, weight), (given["dout"],) * 3)
        return [*outputs, *grads]

    distant = lazily((3, dim), (far, 1), torch.bfloat16, device()).copy_(tensors[which])
    for got, near in zip(run({**tensors, which: distant}), run(tensors)):
        assert_alike(got, near, rounding=COMPILED)


def test_no_rows(backend: str) -> None:
    x = torch.zeros(0, 3, 16, device=device(), requires_grad=True)
    weight = torch.ones(16, device=device(), requires_grad=True)
    out = rmsnorm_fn(x, weight, None, x.detach(), group_size=4)
    assert out.shape == x.shape
    out.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_meta_tensors() -> None:
    x = torch.empty(2, 600, 1024, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(1024, device="meta")
    out, residual = rms_norm(x, weight, 1e-5, x)
    for y in (out, residual, rmsnorm_fn(x, weight, None, x), layernorm_fn(x, weight, weight, x)):
        assert (y.shape, y.dtype, y.device.type) == (x.shape, torch.bfloat16, "meta")
