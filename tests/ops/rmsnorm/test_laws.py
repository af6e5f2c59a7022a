"""Laws of the norms: no mean, the rounded sum, independent groups."""

from __future__ import annotations

from unittest.mock import patch

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import (
    device,
)
from tests.ops.common import law, randn
from tests.ops.rmsnorm.common import BLOCK, naive_norm, norm_inputs
from tvkernels.rmsnorm import layernorm_fn, rms_norm, rmsnorm_fn


def test_rmsnorm_fn_is_layernorm_fn_without_the_mean(backend: str) -> None:
    inputs = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in norm_inputs().items()}
    assert torch.equal(rmsnorm_fn(**inputs), layernorm_fn(**inputs, is_rms_norm=True))
    inputs["x"] = inputs["x"] + 3.0
    assert not torch.allclose(rmsnorm_fn(**inputs), layernorm_fn(**inputs), atol=0.1)


def test_rms_norm_norms_the_rounded_sum(backend: str) -> None:
    x, residual = randn(8, 16).bfloat16(), 100 * randn(8, 16, seed=1).bfloat16()
    weight = torch.ones(16, device=device())
    out, new_residual = rms_norm(x, weight, 1e-5, residual)
    assert torch.equal(new_residual, (x.double() + residual.double()).bfloat16())
    assert torch.equal(out, rms_norm(new_residual, weight, 1e-5))
    truth = naive_norm(new_residual.double(), weight, None, eps=1e-5, is_rms_norm=True)
    assert torch.equal(out, truth.bfloat16())


@law
@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 5),
    size=st.integers(1, 7),
    gate_first=st.booleans(),
    block=st.integers(1, 200),
)
def test_law_groups_are_independent(
    backend: str, rows: int, groups: int, size: int, gate_first: bool, block: int
) -> None:
    x, z = randn(rows, groups * size), randn(rows, groups * size, seed=1)
    weight, bias = randn(groups * size, seed=2), randn(groups * size, seed=3)
    with patch(BLOCK, block):
        whole = layernorm_fn(x, weight, bias, z, 1e-5, size, not gate_first)
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        alone = naive_norm(
            x[:, part], weight[part], bias[part], z[:, part], 1e-5, None, not gate_first
        )
        torch.testing.assert_close(whole[:, part], alone, atol=1e-9, rtol=1e-9)
