"""Device functions that kernels share, and the dtype that they compute in.

Offsets: cast an index to int64 (`.to(tl.int64)`) before it is multiplied by a stride, because one
layer's activations pass 2^31 elements within an hour of video.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = [
    "LOG2_E",
    "accumulator",
    "at_least",
    "at_most",
    "dot",
    "dot_dtype",
    "load_tile",
    "loaded",
    "owned",
    "sigmoid",
    "silu",
    "silu_slope",
    "softplus",
    "state_step",
    "store_tile",
    "strides",
    "waited",
]

# exp(x) = exp2(x * LOG2_E): GPUs have an instruction for exp2
LOG2_E = tl.constexpr(1.4426950408889634)


def accumulator(*dtypes: torch.dtype) -> tl.dtype:
    """What a kernel on `dtypes` computes in: float32, and float64 where one of them is float64."""
    return tl.float64 if torch.float64 in dtypes else tl.float32


def dot_dtype(*dtypes: torch.dtype) -> tl.dtype:
    """Dtype of a dot's operands: the 16 bit dtype that all `dtypes` share, else `accumulator`'s."""
    narrow = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    shared = narrow.get(dtypes[0]) if len({*dtypes}) == 1 else None
    return shared or accumulator(*dtypes)


def strides(x: torch.Tensor | None, ndim: int) -> tuple[int, ...]:
    """Strides to pass for `x`; zeros for a tensor that is not there."""
    return (0,) * ndim if x is None else x.stride()


@triton.jit
def at_least(x, least):
    """max(x, least), elementwise; unlike tl.maximum it keeps NaN."""
    return tl.maximum(x, least, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, most):
    """min(x, most), elementwise; unlike tl.minimum it keeps NaN."""
    return tl.minimum(x, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sigmoid(x):
    # exp(-|x|) never overflows to inf, on either side of the select
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
    # max(x, 0) + log1p(e); the quotient corrects log(1 + e) for the rounding of 1 + e
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def state_step(state, x, dt, A, B, C):
    """Advance a (headdim, d_state) tile of the state by one token: the new tile, and y (headdim,).

    x is (headdim,), B and C are (d_state,). Loaded as vectors they take the layout of the tile;
    loaded as (1, d_state) they would convert the tile to theirs, through shared memory. dt * A
    broadcasts to the tile: dt is a scalar or (headdim, 1), and for two scalars exp is computed
    once. Lanes beyond d_state must be 0.
    """
    new = state * tl.exp(dt * A) + (dt * x[:, None]) * B[None, :]
    return new, tl.sum(new * C[None, :], 1)


@triton.jit
def dot(a, b, acc, DOT_PRECISION: tl.constexpr):
    """acc + a @ b, in the dtype of acc; DOT_PRECISION as `core.tune.dot_precision` gives it."""
    return tl.dot(a, b, acc, input_precision=DOT_PRECISION, out_dtype=acc.dtype)


@triton.jit
def waited(product):
    """`product`, a dot's result that a loop carries, once its matrix instructions have ended.

    Two bitcasts that cancel out. They use the product inside the loop, so Triton waits for it
    there; otherwise it waits in the next iteration, and the operand a may lie in registers that
    the running instructions still read.
    """
    bits: tl.constexpr = tl.int64 if product.dtype == tl.float64 else tl.int32
    return product.to(bits, bitcast=True).to(product.dtype, bitcast=True)


@triton.constexpr_function
def owned(size, D, itemsize):
    """Rows or keys in a program's own tile of `size` bytes; in 16 bit at least the 64 rows of a
    warp group's instruction."""
    return min(128, max(128 // itemsize, size // (D * itemsize)))


@triton.constexpr_function
def loaded(size, D, itemsize):
    """Rows or keys in one tile of `size` bytes that a loop loads."""
    return min(128, max(16, size // (D * itemsize)))


@triton.jit
def load_tile(ptr, at, live, stride, HEADDIM: tl.constexpr, D: tl.constexpr):
    """(rows, D): the heads that begin at the offsets `at`, 0 where not live and beyond HEADDIM."""
    channel = tl.arange(0, D)
    mask = live[:, None]
    if HEADDIM != D:
        mask = mask & (channel < HEADDIM)[None, :]
    return tl.load(ptr + (at[:, None] + (channel.to(tl.int64) * stride)[None, :]), mask, other=0.0)


@triton.jit
def store_tile(ptr, at, live, value, HEADDIM: tl.constexpr, D: tl.constexpr):
    """Store heads that begin at the offsets `at` and whose channels are contiguous."""
    channel = tl.arange(0, D)
    mask = live[:, None]
    if HEADDIM != D:
        mask = mask & (channel < HEADDIM)[None, :]
    tl.store(ptr + (at[:, None] + channel[None, :]), value.to(ptr.dtype.element_ty), mask)
