"""The scan's forward: a program takes channels of a head through a segment, chunk after chunk.

chunk_cumsum, bmm, chunk_state, state_passing and chunk_scan in one kernel: the state stays in
registers from chunk to chunk, and C B^T, decays and step sizes never go to memory.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import LOG2_E, dot, silu
from tvkernels.core.tune import tuned
from tvkernels.ssd.device import (
    advance,
    channels,
    chunk_decays,
    configs,
    entering_state,
    if_given,
    is_finite,
    log_between,
    program_place,
    store_state,
    tile,
    tiles_of,
)


@triton.jit
def _scores(
    C, B, delta, cumsum, cumsum_low, resets, RESETS: tl.constexpr, DOT_PRECISION: tl.constexpr,
    ACC: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The weight of x_j (column) in y_i (row): exp(log-decay between them) (C_i . B_j) delta_j."""
    scores = tl.dot(C, tl.trans(B), input_precision=DOT_PRECISION, out_dtype=ACC)
    i = tl.arange(0, cumsum.shape[0])
    causal = i[:, None] >= i[None, :]
    if RESETS:
        causal = causal & (resets[:, None] == resets[None, :])
    # masked before exp: for j after i the exponent is positive, and exp may overflow
    if tl.float32 == SUM:
        # 16 bit tensors: delta is not negative, so its log2 joins the exponent
        exponent = cumsum[:, None] - (cumsum - tl.log2(delta))[None, :]
        scores *= tl.exp2(tl.where(causal, exponent, float("-inf")))
    else:
        exponent = log_between(
            cumsum[:, None], cumsum_low[:, None], cumsum[None, :], cumsum_low[None, :], SUM != ACC
        )
        scores *= tl.exp2(tl.where(causal, exponent, float("-inf"))) * delta[None, :]
    return scores.to(B.dtype)


@triton.jit
def _scan_tile(
    state, scores, B, C, decay_from_start, delta_to_end, chunk_decay, head_D, x_ptr, D_ptr, z_ptr,
    out_ptr, at, rows, live, x_token, z_token, out_token, p, in_p, x_channel, D_channel, z_channel,
    D_PER_CHANNEL: tl.constexpr, EXACT: tl.constexpr, DOT_PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """A tile of channels through a chunk: stores out, returns the state that leaves the chunk."""
    x = tile(x_ptr + at * x_token, rows, x_token, p, x_channel, live, in_p, EXACT).to(B.dtype)
    y = tl.dot(C, state.to(C.dtype), input_precision=DOT_PRECISION, out_dtype=ACC)
    y = dot(scores, x, y * decay_from_start[:, None], DOT_PRECISION)
    if D_ptr is not None:
        D = head_D
        if D_PER_CHANNEL:
            D = tl.load(D_ptr + p * D_channel, mask=in_p, other=0.0).to(ACC)[None, :]
        y += D * x.to(ACC)
    if z_ptr is not None:
        # update the state first: its operands leave their registers before the gate is loaded
        state = advance(state, B, x, delta_to_end, chunk_decay, DOT_PRECISION, ACC)
        y *= silu(
            tile(z_ptr + at * z_token, rows, z_token, p, z_channel, live, in_p, EXACT).to(ACC)
        )
    mask = live[:, None]
    if not EXACT:
        mask = mask & in_p[None, :]
    to = rows[:, None] * out_token + p.to(rows.dtype)[None, :]
    tl.store(out_ptr + at * out_token + to, y.to(out_ptr.dtype.element_ty), mask=mask)
    if z_ptr is None:
        state = advance(state, B, x, delta_to_end, chunk_decay, DOT_PRECISION, ACC)
    return state


@triton.constexpr_function
def _stages(n, dtype):
    """num_stages of the loop over chunks; None: as configured. With d_state 256 in float32 the
    tiles of two stages do not fit in shared memory."""
    return 1 if n * dtype.primitive_bitwidth > 8 * 512 else None


# (CHUNK_SIZE, warps, stages); at 64 tokens the dots within a chunk and those with the state cost
# about the same
CHUNK_SCAN_CONFIGS = configs(
    {
        "default": ((64, 4, 2), (64, 8, 2), (32, 4, 2), (32, 4, 1)),
        "sm_80": ((64, 8, 1), (64, 8, 2), (32, 4, 2)),
        "sm_90": ((64, 4, 2),),
        "sm_100": ((64, 4, 2), (64, 8, 2)),
        "sm_120": ((64, 8, 1), (32, 4, 2), (32, 4, 1)),
        "gfx942": ((64, 4, 1), (64, 8, 1), (32, 4, 1)),
    }
)

# Arguments that vary with sequence length: not specialised, so a new length does not recompile.
# Batch strides stay specialised: vector loads need their divisibility by 16
ANY_LENGTH = ["seqlen", "segment_len", "segments", "subsegments", "dt_batch", "seq_idx_batch"]


@tuned(CHUNK_SCAN_CONFIGS, key=["BLOCK_DSTATE", "TILE_WIDTHS", "heads_per_group", "SOFTPLUS"])
@triton.jit(do_not_specialize=ANY_LENGTH)
def chunk_scan_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dt_bias_ptr, initial_ptr, seq_idx_ptr,
    subsegment_state_ptr, subsegment_decay_ptr, out_ptr, final_ptr, finite_ptr, seqlen: tl.int64,
    segment_len: tl.int64, segments, subsegments, nheads, heads_per_group, headdim, d_state, dt_min,
    dt_max, x_batch: tl.int64, x_token, x_head, x_channel, dt_batch: tl.int64, dt_token, dt_head,
    A_head, B_batch: tl.int64, B_token, B_group, B_dstate, C_batch: tl.int64, C_token, C_group,
    C_dstate, D_head, D_channel, z_batch: tl.int64, z_token, z_head, z_channel, dt_bias_head,
    initial_batch: tl.int64, initial_head, initial_channel, initial_dstate, seq_idx_batch: tl.int64,
    seq_idx_token, out_token, out_head, BLOCK_DSTATE: tl.constexpr, TILE_WIDTHS: tl.constexpr,
    BLOCK_HEADDIM: tl.constexpr, HEADDIM_BLOCKS: tl.constexpr, D_PER_CHANNEL: tl.constexpr,
    SAME_STRIDES: tl.constexpr, SOFTPLUS: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr,
    DOT_DTYPE: tl.constexpr, EXACT: tl.constexpr, OFFSET: tl.constexpr, CHUNK_SIZE: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_HEADDIM channels of one head in one segment of one sequence
    block, head, segment, batch = program_place(HEADDIM_BLOCKS, nheads, segments)
    begin = (segment * segment_len).to(tl.int32)
    end = tl.minimum(segment * segment_len + segment_len, seqlen).to(tl.int32)
    n, in_n = channels(0, BLOCK_DSTATE, d_state)
    p, in_p = tiles_of(block * BLOCK_HEADDIM, headdim, TILE_WIDTHS)

    x_ptr += batch * x_batch + head * x_head
    dt_ptr += batch * dt_batch + head * dt_head
    B_ptr += batch * B_batch + head // heads_per_group * B_group
    C_ptr += batch * C_batch + head // heads_per_group * C_group
    if SAME_STRIDES:
        C_token, C_dstate = B_token, B_dstate
    out_ptr += batch * seqlen * out_token + head * out_head
    rate = tl.load(A_ptr + head * A_head).to(SUM) * LOG2_E
    dt_bias = if_given(dt_bias_ptr, head * dt_bias_head, ACC)
    D_ptr = None if D_ptr is None else D_ptr + head * D_head
    head_D = if_given(None if D_PER_CHANNEL else D_ptr, 0, ACC)
    z_ptr = None if z_ptr is None else z_ptr + batch * z_batch + head * z_head
    seq_idx_ptr = None if seq_idx_ptr is None else seq_idx_ptr + batch * seq_idx_batch

    state = entering_state(
        initial_ptr, subsegment_state_ptr, subsegment_decay_ptr, batch, head, segment, segments,
        subsegments, nheads, headdim, d_state, initial_batch, initial_head, initial_channel,
        initial_dstate, n, in_n, p, in_p, BLOCK_DSTATE, TILE_WIDTHS, ACC,
    )  # fmt: skip
    t = (begin + tl.arange(0, CHUNK_SIZE)).to(tl.int64)
    # dt is loaded one chunk ahead
    next_dt = tl.load(dt_ptr + t * dt_token, mask=t < end, other=0.0)
    STAGES: tl.constexpr = _stages(BLOCK_DSTATE, DOT_DTYPE)
    # disable_licm: hoisting loop-invariant code raises register pressure until it spills
    for start in tl.range(begin, end, CHUNK_SIZE, num_stages=STAGES, disable_licm=True):
        t = start + tl.arange(0, CHUNK_SIZE)
        live = t < end
        t = t.to(tl.int64)
        dt = next_dt
        ahead = t + CHUNK_SIZE
        next_dt = tl.load(dt_ptr + ahead * dt_token, mask=ahead < end, other=0.0)
        delta, cumsum, low, resets, decay_from_start, delta_to_end, chunk_decay = chunk_decays(
            dt, t, live, seq_idx_ptr, seq_idx_token, rate, dt_bias, dt_min, dt_max,
            CHUNK_SIZE, SOFTPLUS, ACC, SUM,
        )  # fmt: skip
        at, rows = tl.cast(start, tl.int64), tl.arange(0, CHUNK_SIZE).to(OFFSET)
        B = tile(B_ptr + at * B_token, rows, B_token, n, B_dstate, live, in_n, EXACT).to(DOT_DTYPE)
        C = tile(C_ptr + at * C_token, rows, C_token, n, C_dstate, live, in_n, EXACT).to(DOT_DTYPE)
        scores = _scores(
            C, B, delta, cumsum, low, resets, seq_idx_ptr is not None, DOT_PRECISION, ACC, SUM
        )
        new = ()
        for i in tl.static_range(len(TILE_WIDTHS)):
            leaving = _scan_tile(
                state[i], scores, B, C, decay_from_start, delta_to_end, chunk_decay, head_D, x_ptr,
                D_ptr, z_ptr, out_ptr, at, rows, live, x_token, z_token, out_token, p[i], in_p[i],
                x_channel, D_channel, z_channel, D_PER_CHANNEL, EXACT, DOT_PRECISION, ACC,
            )  # fmt: skip
            new += (leaving,)
        state = new
    tl.store(finite_ptr + tl.program_id(0), is_finite(state))
    if segment == segments - 1:
        final_ptr += (batch * nheads + head) * headdim * d_state
        store_state(final_ptr, state, n, p, d_state, in_n, in_p)
