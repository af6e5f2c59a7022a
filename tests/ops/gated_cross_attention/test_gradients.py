"""Gradients of gated_cross_attention: the gate in 16 bits, a closed gate, packed sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contract import assert_close_by_rule, check_contract, on_device
from tests.ops.gated_cross_attention.common import DIFFERENTIABLE, DTYPES, learnt, make, naive
from tvkernels.gated_cross_attention import gated_cross_attention


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("alpha", "dtype"), [(0.0, torch.bfloat16), (0.7, torch.float16)])
def test_the_gradient_of_the_gate_in_16_bits(alpha: float, dtype: torch.dtype) -> None:
    def slopes(fn: Any, like: torch.dtype) -> torch.Tensor:
        found = []
        for seed in range(12):
            inputs = {k: x.to(dtype).to(like) for k, x in make(alpha=alpha, seed=seed).items()}
            leaf = inputs["alpha"].requires_grad_()
            cotangent = on_device(make(seed=50 + seed)["text"].to(dtype).to(like))
            found.append(torch.autograd.grad(fn(**inputs), leaf, cotangent)[0])
        return torch.stack(found)

    truth = slopes(naive, torch.float64)
    assert_close_by_rule(slopes(gated_cross_attention, dtype), slopes(naive, dtype), truth)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_zero_still_learns(dtype: torch.dtype) -> None:
    """The gate starts at 0, so its gradient there is the first step of training."""
    inputs = make(alpha=0.0)
    wrt = learnt(dtype, "out_proj")
    check_contract(gated_cross_attention, naive, inputs, dtype=dtype, wrt=wrt)
    inputs["alpha"].requires_grad_()
    gated_cross_attention(**inputs).sum().backward()
    assert inputs["alpha"].grad is not None
    assert abs(float(inputs["alpha"].grad)) > 1e-3


@pytest.mark.usefixtures("backend")
def test_packed_gradients() -> None:
    inputs = make(batch=1, n=9, m=30)
    cu_q, cu_k = [0, 4, 9], [0, 11, 30]

    def packed_naive(text, q, k, v, alpha, out_proj):
        parts = [(0, 4, 0, 11), (4, 9, 11, 30)]
        return torch.cat(
            [naive(text[:, a:b], q[:, a:b], k[:, c:d], v[:, c:d], alpha, out_proj)
             for a, b, c, d in parts], 1,
        )  # fmt: skip

    def packed(**kwargs):
        return gated_cross_attention(**kwargs, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)

    check_contract(packed, packed_naive, inputs, wrt=(*DIFFERENTIABLE, "out_proj"))


def test_the_backward_keeps_no_map() -> None:
    inputs = {k: v.requires_grad_() for k, v in make(batch=1, n=64, m=512).items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, id):
        gated_cross_attention(**inputs)
    assert sum(kept) < 6 * 64 * 512
