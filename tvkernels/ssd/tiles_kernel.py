"""What the scan's forward kernels share: configurations, step sizes and decays, tiles, addresses.

Exponents are in base 2. Between two tokens of a chunk the log-decay is a difference of the running
sum g; beside one huge step a float32 sum would lose the small ones. So for float32 tensors g is
summed in float64 and kept as two float32 (SUM wider than ACC), and steps below LOWEST, which decay
to an exact zero alone, are cut there.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import softplus

LOG2E = tl.constexpr(1.4426950408889634)


def configs(choices):
    """Configurations by target, of (Q, warps, stages). PRECISION: how float32 is multiplied, on AMD
    by its own instructions, on NVIDIA as three products of TF32: without tensor cores a program's
    registers do not suffice."""
    return {
        target: [
            triton.Config(
                {"Q": q, "PRECISION": "ieee" if target == "gfx942" else "tf32x3"},
                num_warps=warps,
                num_stages=stages,
            )
            for q, warps, stages in listed
        ]
        for target, listed in choices.items()
    }


@triton.jit
def step_sizes(raw, bias, dt_min, dt_max, live, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    """delta of each token, 0 beyond the last one."""
    delta = raw.to(ACC) + bias
    if SOFTPLUS:
        delta = softplus(delta)
    delta = tl.where(live, tl.minimum(tl.maximum(delta, dt_min), dt_max), 0.0)
    # a scan of one element each: a border for the compiler, which else computes all of the above
    # once more for every layout that delta is needed in
    each = tl.cumsum(tl.reshape(delta, (delta.shape[0], 1)), 1)
    return tl.reshape(each, (delta.shape[0],))


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
def chunk_decays(
    raw, t, live, seq_ptr, seq_t, rate, bias, dt_min, dt_max,
    Q: tl.constexpr, SOFTPLUS: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Of a chunk: delta; the running sum g in two parts; the number of resets up to each token;
    what each token reads of the state that enters, and adds to the one that leaves; what is kept.
    """
    delta = step_sizes(raw, bias, dt_min, dt_max, live, SOFTPLUS, ACC)
    g, g_low = two_floats(tl.cumsum(log_decays(delta, rate, SUM), 0), ACC)
    total, total_low = at_end(g, Q), 0.0
    if SUM != ACC:
        total_low = at_end(g_low, Q)
    reads = tl.exp2(g + g_low)
    adds = delta * tl.exp2(between(total, total_low, g, g_low, SUM != ACC))
    kept = tl.exp2(total + total_low)
    borders = tl.zeros((Q,), tl.int32)
    if seq_ptr is not None:
        borders = tl.cumsum(resets(seq_ptr, t, seq_t, live), 0)
        crossed = at_end(borders, Q)
        reads = tl.where(borders == 0, reads, 0.0)
        adds = tl.where(borders == crossed, adds, 0.0)
        kept = tl.where(crossed == 0, kept, 0.0)
    return delta, g, g_low, borders, reads, adds, kept


@triton.jit
def whose(BLOCKS: tl.constexpr, nheads, parts):
    """What a program owns: a block of channels, a head, a part of the sequence, a row of the batch.

    In this order, fastest first: the heads of a group run together, and share its B and C in cache.
    """
    pid = tl.program_id(0)
    head = (pid // BLOCKS) % nheads
    part = (pid // (BLOCKS * nheads)) % parts
    row = pid // (BLOCKS * nheads * parts)
    return pid % BLOCKS, head.to(tl.int64), part, row.to(tl.int64)


@triton.jit
def channels(first, SIZE: tl.constexpr, size):
    """SIZE indices from `first`, and which of them there are."""
    at = (first + tl.arange(0, SIZE)).to(tl.int64)
    return at, at < size


@triton.jit
def tiles_of(first, size, WIDTHS: tl.constexpr):
    """The channels of each of a program's tiles, side by side from `first` on, as `channels`."""
    p, within = (), ()
    for i in tl.static_range(len(WIDTHS)):
        at, inside = channels(first, WIDTHS[i], size)
        p += (at,)
        within += (inside,)
        first += WIDTHS[i]
    return p, within


@triton.jit
def if_given(ptr, at, ACC: tl.constexpr):
    """One number, 0 where there is no tensor."""
    value = 0.0
    if ptr is not None:
        value = tl.load(ptr + at).to(ACC)
    return value


@triton.jit
def advance(state, B, x, adds, kept, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """The state that leaves a chunk: what is kept of the one that entered, and what tokens add."""
    tokens = (x.to(ACC) * adds[:, None]).to(B.dtype)
    if tl.float32 == B.dtype:
        # tensor cores cut off what they add up: into the state itself, that is a drift
        added = tl.dot(tl.trans(B), tokens, input_precision=PRECISION, out_dtype=ACC)
        return tl.fma(state, kept, added)
    return tl.dot(tl.trans(B), tokens, acc=state * kept, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def tile(ptr, rows, row_stride, columns, column_stride, live, within, EXACT: tl.constexpr):
    """A (rows, columns) tile, 0 outside; EXACT: every column is within. The rows' dtype is that of
    offsets from `ptr`."""
    at = rows[:, None] * row_stride + columns.to(rows.dtype)[None, :] * column_stride
    mask = live[:, None]
    if not EXACT:
        mask = mask & within[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0)


@triton.jit
def load_state(ptr, n, n_stride, p, p_stride, n_within, p_within, ACC: tl.constexpr):
    """A state in memory is (headdim, d_state), its tile (d_state, headdim)."""
    return tile(ptr, n, n_stride, p, p_stride, n_within, p_within, False).to(ACC)


@triton.jit
def store_state(ptr, state, n, p, p_stride, n_within, p_within):
    at = n[:, None] + p[None, :] * p_stride
    value = state.to(ptr.dtype.element_ty)
    tl.store(ptr + at, value, mask=n_within[:, None] & p_within[None, :])
