"""chunk_state without outputs: the state that a subsegment, or a packed sequence, leaves behind."""

import triton
import triton.language as tl

from tvkernels.core.tl import LOG2_E
from tvkernels.core.tune import tuned
from tvkernels.ssd.device import (
    advance,
    channels,
    chunk_decays,
    configs,
    if_given,
    is_reset,
    load_state,
    log_decays,
    program_place,
    step_sizes,
    store_state,
    tile,
    tiles_of,
)

# tokens per step of the backward search for the first token that still contributes
LOOK = tl.constexpr(512)


@triton.jit
def _look_back(
    dt_ptr, seq_idx_ptr, rate, dt_bias, begin, end, dt_token, seq_idx_token, dt_min, dt_max,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The first token of [begin, end) that still contributes to the state at `end`, and the
    log2-decay from `begin` to `end`. What decays below the normal numbers is dropped."""
    FORGOTTEN: tl.constexpr = -1022.0 if tl.float64 == ACC else -126.0
    first_token = end
    log_decay = tl.zeros((), SUM)
    while (first_token > begin) & (log_decay >= FORGOTTEN):
        t = first_token - LOOK + tl.arange(0, LOOK)
        live = t >= begin
        t = t.to(tl.int64)
        dt = tl.load(dt_ptr + t * dt_token, mask=live, other=0.0)
        delta = step_sizes(dt, dt_bias, dt_min, dt_max, live, SOFTPLUS, ACC)
        log_decay += tl.sum(log_decays(delta, rate, live, SUM), 0)
        if seq_idx_ptr is not None:
            resets = is_reset(seq_idx_ptr, t, seq_idx_token, live)
            log_decay += tl.where(tl.sum(resets, 0) > 0, float("-inf"), 0.0)
            # the tokens before the last reset are not read: they may hold NaN or infinity
            begin = tl.maximum(begin, tl.max(tl.where(resets > 0, t, 0), 0).to(tl.int32))
        first_token = tl.maximum(first_token - LOOK, begin)
    return first_token, tl.where(log_decay >= FORGOTTEN, log_decay, float("-inf"))


CHUNK_STATE_CONFIGS = configs(
    {
        "default": ((64, 4, 2), (64, 4, 3), (64, 8, 3)),
        "sm_120": ((64, 4, 2), (64, 8, 2), (32, 4, 2)),
        "gfx942": ((64, 4, 1), (32, 4, 1)),
    }
)


@tuned(CHUNK_STATE_CONFIGS, key=["BLOCK_DSTATE", "TILE_WIDTHS", "heads_per_group", "SOFTPLUS"])
@triton.jit(
    do_not_specialize=["seqlen", "subsegment_len", "subsegments", "dt_batch", "seq_idx_batch"]
)
def chunk_state_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, dt_bias_ptr, initial_ptr, seq_idx_ptr, cu_seqlens_ptr, state_ptr,
    subsegment_decay_ptr, seqlen: tl.int64, subsegment_len: tl.int64, subsegments, nheads,
    heads_per_group, headdim, d_state, dt_min, dt_max, x_batch: tl.int64, x_token, x_head,
    x_channel, dt_batch: tl.int64, dt_token, dt_head, A_head, B_batch: tl.int64, B_token, B_group,
    B_dstate, dt_bias_head, initial_head, initial_channel, initial_dstate, seq_idx_batch: tl.int64,
    seq_idx_token, cu_seqlens_stride, BLOCK_DSTATE: tl.constexpr, TILE_WIDTHS: tl.constexpr,
    BLOCK_HEADDIM: tl.constexpr, HEADDIM_BLOCKS: tl.constexpr, SOFTPLUS: tl.constexpr,
    ACC: tl.constexpr, SUM: tl.constexpr, DOT_DTYPE: tl.constexpr, EXACT: tl.constexpr,
    OFFSET: tl.constexpr, CHUNK_SIZE: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns the state of BLOCK_HEADDIM channels of one head at the end of one subsegment,
    # or of one packed sequence; with seq_idx that starts from token 0, as the recurrence may reach
    # back to before the sequence's first token
    block, head, subsegment, batch = program_place(HEADDIM_BLOCKS, nheads, subsegments)
    group = head // heads_per_group
    begin = (subsegment * subsegment_len).to(tl.int32)
    end = tl.minimum(subsegment * subsegment_len + subsegment_len, seqlen).to(tl.int32)
    if cu_seqlens_ptr is not None:
        begin = tl.load(cu_seqlens_ptr + subsegment * cu_seqlens_stride).to(tl.int32)
        end = tl.load(cu_seqlens_ptr + (subsegment + 1) * cu_seqlens_stride).to(tl.int32)
        if seq_idx_ptr is not None:
            begin = tl.where(begin < end, 0, begin)
    n, in_n = channels(0, BLOCK_DSTATE, d_state)
    p, in_p = tiles_of(block * BLOCK_HEADDIM, headdim, TILE_WIDTHS)
    x_ptr += batch * x_batch + head * x_head
    dt_ptr += batch * dt_batch + head * dt_head
    B_ptr += batch * B_batch + group * B_group
    rate = tl.load(A_ptr + head * A_head).to(SUM) * LOG2_E
    dt_bias = if_given(dt_bias_ptr, head * dt_bias_head, ACC)
    seq_idx_ptr = None if seq_idx_ptr is None else seq_idx_ptr + batch * seq_idx_batch

    first_token, log_decay = _look_back(
        dt_ptr, seq_idx_ptr, rate, dt_bias, begin, end, dt_token, seq_idx_token, dt_min, dt_max,
        SOFTPLUS, ACC, SUM,
    )  # fmt: skip
    state = ()
    for i in tl.static_range(len(TILE_WIDTHS)):
        entering = tl.zeros((BLOCK_DSTATE, p[i].shape[0]), ACC)
        if initial_ptr is not None:
            # the initial state enters the sequence of token 0
            entered = n < tl.where((first_token == 0) & (begin < end), d_state, 0)
            source = initial_ptr + head * initial_head
            entering = load_state(
                source, n, initial_dstate, p[i], initial_channel, entered, in_p[i], ACC
            )
        state += (entering,)

    # disable_licm: hoisting loop-invariant code raises register pressure until it spills
    for start in tl.range(first_token, end, CHUNK_SIZE, disable_licm=True):
        t = start + tl.arange(0, CHUNK_SIZE)
        live = t < end
        t = t.to(tl.int64)
        dt = tl.load(dt_ptr + t * dt_token, mask=live, other=0.0)
        _, _, _, _, _, delta_to_end, chunk_decay = chunk_decays(
            dt, t, live, seq_idx_ptr, seq_idx_token, rate, dt_bias, dt_min, dt_max,
            CHUNK_SIZE, SOFTPLUS, ACC, SUM,
        )  # fmt: skip
        at, rows = tl.cast(start, tl.int64), tl.arange(0, CHUNK_SIZE).to(OFFSET)
        B = tile(B_ptr + at * B_token, rows, B_token, n, B_dstate, live, in_n, EXACT).to(DOT_DTYPE)
        new = ()
        for i in tl.static_range(len(TILE_WIDTHS)):
            x = tile(x_ptr + at * x_token, rows, x_token, p[i], x_channel, live, in_p[i], EXACT)
            new += (advance(state[i], B, x, delta_to_end, chunk_decay, DOT_PRECISION, ACC),)
        state = new

    at = (batch * subsegments + subsegment) * nheads + head
    state_ptr += at * headdim * d_state
    store_state(state_ptr, state, n, p, d_state, in_n, in_p)
    if subsegment_decay_ptr is not None:
        # every block of channels stores the same number
        subsegment_decay_ptr += at
        decay = tl.exp2(log_decay).to(subsegment_decay_ptr.dtype.element_ty)
        tl.store(subsegment_decay_ptr, decay)
