"""What the scan's kernels share: step sizes and decays of one chunk, sums of them, tiles, addresses.

Exponents are in base 2. Between two tokens of a chunk the log-decay is a difference of the running
sum g; beside one huge step a float32 sum would lose the small ones. So for float32 tensors g is
summed in float64 and kept as two float32 (SUM wider than ACC), and steps below LOWEST, which decay
to an exact zero alone, are cut there.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import softplus

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def step_sizes(raw, bias, dt_min, dt_max, live, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    """delta of each token, 0 beyond the last one."""
    delta = raw.to(ACC) + bias
    if SOFTPLUS:
        delta = softplus(delta)
    delta = tl.minimum(tl.maximum(delta, dt_min), dt_max)
    return tl.where(live, delta, 0.0)


@triton.jit
def log_decays(delta, rate, SUM: tl.constexpr):
    """log2 of what each token leaves of the state; rate = A log2(e)."""
    LOWEST: tl.constexpr = -1100.0 if delta.dtype == tl.float64 else -160.0
    return tl.maximum(delta.to(SUM) * rate, LOWEST)


@triton.jit
def resets(seq_ptr, t, stride, live):
    """1 where a token's sequence is not that of the token before it; token 0 is never."""
    behind = live & (t > 0)
    here = tl.load(seq_ptr + t * stride, mask=behind, other=0)
    before = tl.load(seq_ptr + (t - 1) * stride, mask=behind, other=0)
    return (here != before).to(tl.int32)


@triton.jit
def two_floats(g, ACC: tl.constexpr):
    """g as a sum of two numbers of dtype ACC; the second is 0 where one holds it."""
    high = g.to(ACC)
    return high, (g - high.to(g.dtype)).to(ACC)


@triton.jit
def between(a, a_low, b, b_low, TWO: tl.constexpr):
    """a - b of two running sums."""
    path = a - b
    if TWO:
        path += a_low - b_low
    return path


@triton.jit
def at_end(values, Q: tl.constexpr):
    """The last of Q values."""
    return tl.sum(tl.where(tl.arange(0, Q) == Q - 1, values, tl.zeros_like(values)), 0)


@triton.jit
def tile(ptr, rows, row_stride, columns, column_stride, live, within):
    """A (rows, columns) tile, 0 outside."""
    at = rows[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(ptr + at, mask=live[:, None] & within[None, :], other=0.0)


@triton.jit
def load_state(ptr, n, n_stride, p, p_stride, n_within, p_within, ACC: tl.constexpr):
    return tile(ptr, n, n_stride, p, p_stride, n_within, p_within).to(ACC)


@triton.jit
def store_state(ptr, state, n, p, p_stride, n_within, p_within):
    """Memory has (headdim, d_state), the tile (d_state, headdim)."""
    at = n[:, None] + p[None, :] * p_stride
    value = state.to(ptr.dtype.element_ty)
    tl.store(ptr + at, value, mask=n_within[:, None] & p_within[None, :])
