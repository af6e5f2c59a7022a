"""The activation between the two products of a Nemotron-H MLP.

relu2(x) = max(x, 0)^2;  dx = 2 max(x, 0) dy.
Source: So et al. 2021, Primer (arXiv 2109.08668).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import expect_dtype
from tvkernels.core.library import kernel_op
from tvkernels.core.plain import first_order
from tvkernels.relu2.reference import relu2_ref

__all__ = ["relu2"]


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2, element by element, in one pass over memory each way.

    Args:
        x: any shape and strides; float32, bfloat16, float16 or float64.

    Returns:
        shape and dtype of x; strides as PyTorch's own elementwise operations give them: those of x
        where it is dense.

    Raises:
        ValueError: `x` is no tensor of such a dtype.

    Numerics: computed in float32 (float64 for float64) and rounded once. NaN stays NaN; where x is
    at most 0 its gradient is 0 whatever dy is. Only x is kept for the backward pass. The kernel
    gives first order gradients only.
    Source: So et al. 2021, Primer (arXiv 2109.08668).
    """
    expect_dtype("relu2", "x", x)
    if backend_for(x, "relu2") == "reference":
        return relu2_ref(x)
    return _Relu2.apply(x)


class _Relu2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _relu2_fwd(x)

    @staticmethod
    @first_order("relu2")
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _relu2_bwd(dy, x)


def _fake_fwd(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@kernel_op("tvkernels::relu2_fwd", fake=_fake_fwd)
def _relu2_fwd(x: Tensor) -> Tensor:
    from tvkernels.relu2.kernel import relu2_forward

    return relu2_forward(x)


def _fake_bwd(dy: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


@kernel_op("tvkernels::relu2_bwd", fake=_fake_bwd)
def _relu2_bwd(dy: Tensor, x: Tensor) -> Tensor:
    from tvkernels.relu2.kernel import relu2_backward

    return relu2_backward(dy, x)
