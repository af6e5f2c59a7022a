"""Device functions of the scan's forward kernels: step sizes, decays, tiles, addresses,
and the states that enter and leave a segment.

n indexes d_state and p the channels of a head, as in the paper. Exponents are in base 2. `cumsum`
is the running sum of the log2-decays from the chunk's first token on. The log-decay between two
tokens is a difference of two of its entries, and in float32 would lose small decays beside one huge
step. For float32 tensors it is therefore summed in float64 (SUM) and kept as two numbers of dtype
ACC, and each log-decay is cut off at `lowest_log_decay`.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import at_least, at_most, dot, softplus
from tvkernels.core.tune import dot_precision


def configs(choices):
    """Configurations by target, from tuples (CHUNK_SIZE, warps, stages)."""
    return {
        target: [
            triton.Config(
                {"CHUNK_SIZE": chunk_size, "DOT_PRECISION": dot_precision(target)},
                num_warps=warps,
                num_stages=stages,
            )
            for chunk_size, warps, stages in listed
        ]
        for target, listed in choices.items()
    }


@triton.constexpr_function
def lowest_log_decay(dtype):
    """The log2-decay at which a token's log-decay is cut off: exp2 of it is 0 in `dtype`.

    Without the cut-off a huge step would make sums of log-decays, and so their rounding, large.
    """
    return -1100.0 if dtype == tl.float64 else -160.0


@triton.jit
def step_sizes(dt, dt_bias, dt_min, dt_max, live, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    """delta of each token, 0 beyond the last one."""
    delta = dt.to(ACC) + dt_bias
    if SOFTPLUS:
        delta = softplus(delta)
    delta = tl.where(live, at_most(at_least(delta, dt_min), dt_max), 0.0)
    # No-op cumsum over a length-1 axis. It forces Triton to materialise delta once; otherwise the
    # softplus is recomputed in every layout that uses it
    each = tl.cumsum(tl.reshape(delta, (delta.shape[0], 1)), 1)
    return tl.reshape(each, (delta.shape[0],))


@triton.jit
def log_decays(delta, rate, live, SUM: tl.constexpr):
    """The log2-decay of the state at each token, 0 beyond the last one; rate = A log2(e)."""
    LOWEST: tl.constexpr = lowest_log_decay(delta.dtype)
    return tl.where(live, at_least(delta.to(SUM) * rate, LOWEST), 0.0)


@triton.jit
def is_reset(seq_idx_ptr, t, stride, live):
    """1 where a token and the one before it are of different sequences; 0 for token 0."""
    behind = live & (t > 0)
    here = tl.load(seq_idx_ptr + t * stride, mask=behind, other=0)
    before = tl.load(seq_idx_ptr + (t - 1) * stride, mask=behind, other=0)
    return (here != before).to(tl.int32)


@triton.jit
def two_floats(cumsum, ACC: tl.constexpr):
    """cumsum as a sum of two numbers of dtype ACC; the second is 0 if the first is exact."""
    high = cumsum.to(ACC)
    return high, (cumsum - high.to(cumsum.dtype)).to(ACC)


@triton.jit
def log_between(a, a_low, b, b_low, TWO_FLOATS: tl.constexpr):
    """a - b of two running sums, the log2-decay from b to a."""
    gap = a - b
    if TWO_FLOATS:
        gap += a_low - b_low
    return gap


@triton.jit
def at_end(values, CHUNK_SIZE: tl.constexpr):
    """The last of CHUNK_SIZE values."""
    is_last = tl.arange(0, CHUNK_SIZE) == CHUNK_SIZE - 1
    return tl.sum(tl.where(is_last, values, tl.zeros_like(values)), 0)


@triton.jit
def chunk_decays(
    dt, t, live, seq_idx_ptr, seq_idx_token, rate, dt_bias, dt_min, dt_max,
    CHUNK_SIZE: tl.constexpr, SOFTPLUS: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """chunk_cumsum of one chunk: delta; the running sum of log-decays, high and low part; the
    number of resets up to each token; the decay from the chunk's start to each token; delta times
    the decay from each token to the chunk's end; the decay of the whole chunk. Decays across a
    reset are 0.
    """
    delta = step_sizes(dt, dt_bias, dt_min, dt_max, live, SOFTPLUS, ACC)
    cumsum, cumsum_low = two_floats(tl.cumsum(log_decays(delta, rate, live, SUM), 0), ACC)
    total, total_low = at_end(cumsum, CHUNK_SIZE), 0.0
    if SUM != ACC:
        total_low = at_end(cumsum_low, CHUNK_SIZE)
    decay_from_start = tl.exp2(cumsum + cumsum_low)
    delta_to_end = delta * tl.exp2(log_between(total, total_low, cumsum, cumsum_low, SUM != ACC))
    chunk_decay = tl.exp2(total + total_low)
    resets = tl.zeros((CHUNK_SIZE,), tl.int32)
    if seq_idx_ptr is not None:
        resets = tl.cumsum(is_reset(seq_idx_ptr, t, seq_idx_token, live), 0)
        all_resets = at_end(resets, CHUNK_SIZE)
        decay_from_start = tl.where(resets == 0, decay_from_start, 0.0)
        delta_to_end = tl.where(resets == all_resets, delta_to_end, 0.0)
        chunk_decay = tl.where(all_resets == 0, chunk_decay, 0.0)
    return delta, cumsum, cumsum_low, resets, decay_from_start, delta_to_end, chunk_decay


@triton.jit
def program_place(HEADDIM_BLOCKS: tl.constexpr, nheads, segments):
    """What a program owns: a block of channels, a head, a segment of the sequence, a batch index.

    The first varies fastest, so the heads of a group run together and share its B and C in cache.
    """
    pid = tl.program_id(0)
    head = (pid // HEADDIM_BLOCKS) % nheads
    segment = (pid // (HEADDIM_BLOCKS * nheads)) % segments
    batch = pid // (HEADDIM_BLOCKS * nheads * segments)
    return pid % HEADDIM_BLOCKS, head.to(tl.int64), segment, batch.to(tl.int64)


@triton.jit
def channels(first, SIZE: tl.constexpr, size):
    """SIZE indices from `first`, and which of them are below `size`."""
    at = (first + tl.arange(0, SIZE)).to(tl.int64)
    return at, at < size


@triton.jit
def tiles_of(first, size, TILE_WIDTHS: tl.constexpr):
    """`channels` of each of a program's tiles, which lie side by side from `first` on."""
    p, within = (), ()
    for i in tl.static_range(len(TILE_WIDTHS)):
        at, inside = channels(first, TILE_WIDTHS[i], size)
        p += (at,)
        within += (inside,)
        first += TILE_WIDTHS[i]
    return p, within


@triton.jit
def if_given(ptr, at, ACC: tl.constexpr):
    """The number at ptr + at, or 0 without a tensor."""
    value = 0.0
    if ptr is not None:
        value = tl.load(ptr + at).to(ACC)
    return value


@triton.jit
def advance(state, B, x, delta_to_end, chunk_decay, DOT_PRECISION: tl.constexpr, ACC: tl.constexpr):
    """The state that leaves a chunk: the decayed state that entered, plus what the tokens add."""
    tokens = (x.to(ACC) * delta_to_end[:, None]).to(B.dtype)
    if tl.float32 == B.dtype:
        # tensor cores truncate as they accumulate: with the state as accumulator it would drift
        added = tl.dot(tl.trans(B), tokens, input_precision=DOT_PRECISION, out_dtype=ACC)
        return tl.fma(state, chunk_decay, added)
    return dot(tl.trans(B), tokens, acc=state * chunk_decay, DOT_PRECISION=DOT_PRECISION)


@triton.jit
def tile(ptr, rows, row_stride, columns, column_stride, live, within, EXACT: tl.constexpr):
    """A (rows, columns) tile, 0 outside; EXACT: no column is outside. Offsets from `ptr` have the
    dtype of `rows`."""
    at = rows[:, None] * row_stride + columns.to(rows.dtype)[None, :] * column_stride
    mask = live[:, None]
    if not EXACT:
        mask = mask & within[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0)


@triton.jit
def load_state(ptr, n, n_stride, p, p_stride, n_within, p_within, ACC: tl.constexpr):
    """The tile (d_state, headdim) of a state, which in memory is (headdim, d_state)."""
    return tile(ptr, n, n_stride, p, p_stride, n_within, p_within, False).to(ACC)


@triton.jit
def entering_state(
    initial_ptr, subsegment_state_ptr, subsegment_decay_ptr, batch, head, segment, segments,
    subsegments, nheads, headdim, d_state, initial_batch, initial_head, initial_channel,
    initial_dstate, n, in_n, p, in_p, BLOCK_DSTATE: tl.constexpr, TILE_WIDTHS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The state that enters the segment: the initial one, taken through the subsegments before."""
    tiles = ()
    for i in tl.static_range(len(TILE_WIDTHS)):
        state = tl.zeros((BLOCK_DSTATE, p[i].shape[0]), ACC)
        if initial_ptr is not None:
            source = initial_ptr + batch * initial_batch + head * initial_head
            state = load_state(source, n, initial_dstate, p[i], initial_channel, in_n, in_p[i], ACC)
        for subsegment in range(segment * subsegments):
            at = (batch * (segments - 1) * subsegments + subsegment) * nheads + head
            # not `source` again: a variable keeps its dtype, and the initial state may have another
            summed = subsegment_state_ptr + at * headdim * d_state
            added = load_state(summed, n, 1, p[i], d_state, in_n, in_p[i], ACC)
            state = state * tl.load(subsegment_decay_ptr + at) + added
        tiles += (state,)
    return tiles


@triton.jit
def is_finite(state):
    """1 if every entry of every tile of a state is finite, else 0."""
    finite = 1
    for i in tl.static_range(len(state)):
        # over both axes at once: Triton 3.6 compiles no reduction after another here for sm_100
        finite = finite & tl.min((tl.abs(state[i]) < float("inf")).to(tl.int32))
    return finite


@triton.jit
def store_state(ptr, state, n, p, p_stride, n_within, p_within):
    """Stores all tiles of a state."""
    for i in tl.static_range(len(state)):
        at = n[:, None] + p[i][None, :] * p_stride
        value = state[i].to(ptr.dtype.element_ty)
        tl.store(ptr + at, value, mask=n_within[:, None] & p_within[i][None, :])
