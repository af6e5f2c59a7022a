"""The device functions that kernels share, against PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contract import TRITON
from tests.interpreter import INTERPRETED

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU"),
]

if TRITON:
    import triton
    import triton.language as tl

    from tvkernels.core import tl as shared

    DEVICE = "cpu" if INTERPRETED else "cuda"

    @triton.jit
    def unary_kernel(x_ptr, y_ptr, n, NAME: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n, other=0.0)
        if NAME == "sigmoid":
            y = shared.sigmoid(x)
        elif NAME == "silu":
            y = shared.silu(x)
        elif NAME == "silu_slope":
            y = shared.silu_slope(x)
        elif NAME == "waited":
            y = shared.waited(x)
        else:
            y = shared.softplus(x)
        tl.store(y_ptr + i, y, mask=i < n)


FUNCTIONS: dict[str, Any] = {
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "silu_slope": lambda x: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))),
    "waited": lambda x: x,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_device_functions(name: str) -> None:
    x = torch.cat([torch.linspace(-30, 30, 999), torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])])
    y = torch.empty(x.shape, device=DEVICE)
    unary_kernel[(triton.cdiv(x.numel(), 1024),)](x.to(DEVICE), y, x.numel(), NAME=name, BLOCK=1024)
    y, truth = y.cpu(), FUNCTIONS[name](x.double())
    # relative where the value is not lost below float32: exp(-30) counts, exp(-100) need not
    assert torch.all((y - truth).abs() <= 2e-6 * truth.abs() + 1e-30 + 1e-6 * (x.abs() < 2))
    assert torch.isfinite(y).all()
