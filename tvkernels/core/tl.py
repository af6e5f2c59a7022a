"""Device functions that kernels share, and the dtype that they compute in.

Offsets: an index that is multiplied by a stride is made int64 first (`.to(tl.int64)`), because a
view of one layer's activations passes 2^31 elements within an hour of video.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["accumulator", "sigmoid", "silu", "silu_slope", "softplus", "state_step", "strides"]


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """What a kernel on `dtype` computes in: float32, and float64 for float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def strides(x: torch.Tensor | None, ndim: int) -> tuple[int, ...]:
    """Strides to pass for `x`; zeros for a tensor that is not there."""
    return (0,) * ndim if x is None else x.stride()


@triton.jit
def sigmoid(x):
    # the smaller of exp(x), exp(-x): never inf, also not on the side that is dropped
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def softplus(x):
    # max(x, 0) + log1p(e); the quotient corrects log(1 + e) for what 1 + e rounded away
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def state_step(state, x, dt, A, B, C):
    """A (headdim, d_state) tile of the state moved on by one token: the new tile, and y (headdim,).

    x is (headdim, 1), B and C are (1, d_state). dt is (headdim, 1) or (1, 1) and A any tile that
    broadcasts: of what a whole head shares, (1, 1), exp is taken once. Lanes beyond d_state must
    come as 0.
    """
    new = state * tl.exp(dt * A) + (dt * x) * B
    return new, tl.sum(new * C, 1)
