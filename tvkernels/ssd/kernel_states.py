"""States without outputs: of the pieces before a segment, and after each packed sequence."""

import triton
import triton.language as tl

from tvkernels.core.tune import tuned
from tvkernels.ssd.kernel_tiles import (
    LOG2E,
    at_end,
    between,
    load_state,
    log_decays,
    resets,
    step_sizes,
    store_state,
    tile,
    two_floats,
)
from tvkernels.ssd.kernel_walk import advance

# tokens whose decay is summed at a time when looking back for the first one that still counts
LOOK = tl.constexpr(512)


@triton.jit
def _look_back(
    dt_ptr, seq_ptr, rate, bias, begin, end, dt_t, seq_t, dt_min, dt_max,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """(first token of [begin, end) that the state at `end` remembers, log2 of what it remembers of
    the state before `begin`). What decays below the normal numbers is forgotten."""
    FORGOTTEN: tl.constexpr = -1022.0 if ACC == tl.float64 else -126.0
    first = end
    total = tl.zeros((), SUM)
    while (first > begin) & (total >= FORGOTTEN):
        t = first - LOOK + tl.arange(0, LOOK)
        live = t >= begin
        raw = tl.load(dt_ptr + t * dt_t, mask=live, other=0.0)
        delta = step_sizes(raw, bias, dt_min, dt_max, live, SOFTPLUS, ACC)
        total += tl.sum(log_decays(delta, rate, SUM), 0)
        if seq_ptr is not None:
            total += tl.where(tl.sum(resets(seq_ptr, t, seq_t, live), 0) > 0, float("-inf"), 0.0)
        first = tl.maximum(first - LOOK, begin)
    return first, tl.where(total >= FORGOTTEN, total, float("-inf"))


def _configs(*choices):
    return [
        triton.Config({"Q": q}, num_warps=warps, num_stages=stages) for q, warps, stages in choices
    ]


STATE_CONFIGS = {
    "default": _configs((64, 4, 3), (64, 4, 2), (64, 8, 3)),
    "sm_120": _configs((64, 4, 2), (64, 8, 2), (32, 4, 2)),
    "gfx942": _configs((64, 4, 1), (32, 4, 1)),
}


@tuned(STATE_CONFIGS, key=["N", "MAIN", "TAIL", "heads_per_group", "SOFTPLUS"])
@triton.jit(do_not_specialize=["end_of_all", "piece", "pieces", "x_b", "dt_b", "B_b", "seq_b"])
def state_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, first_ptr, seq_ptr, cu_ptr, state_ptr, fade_ptr,
    end_of_all: tl.int64, piece: tl.int64, pieces, nheads, heads_per_group, headdim, d_state,
    dt_min, dt_max,
    x_b: tl.int64, x_t, x_h, x_p, dt_b: tl.int64, dt_t, dt_h, A_h, B_b: tl.int64, B_t, B_g, B_n,
    bias_h, first_h, first_p, first_n, seq_b: tl.int64, seq_t, cu_s,
    N: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCKS: tl.constexpr,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr, DOT: tl.constexpr,
    INDEX: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    # one program owns the state of MAIN + TAIL channels of one head at the end of one piece, or of
    # one packed sequence; with seq_idx that one may begin before its first token
    pid = tl.program_id(0)
    block = pid % BLOCKS
    head = ((pid // BLOCKS) % nheads).to(tl.int64)
    part = (pid // (BLOCKS * nheads)) % pieces
    row = (pid // (BLOCKS * nheads * pieces)).to(tl.int64)
    group = head // heads_per_group
    begin = part * piece
    end = tl.minimum(begin + piece, end_of_all)
    if cu_ptr is not None:
        begin = tl.load(cu_ptr + part * cu_s).to(tl.int64)
        end = tl.load(cu_ptr + (part + 1) * cu_s).to(tl.int64)
        if seq_ptr is not None:
            begin = tl.where(begin < end, 0, begin)

    WIDTH: tl.constexpr = MAIN + TAIL
    SIDE: tl.constexpr = max(TAIL, 16)
    TWO: tl.constexpr = SUM != ACC
    i = tl.arange(0, Q)
    rows = i.to(INDEX)
    n = tl.arange(0, N).to(INDEX)
    p0 = (block * WIDTH + tl.arange(0, MAIN)).to(INDEX)
    p1 = (block * WIDTH + MAIN + tl.arange(0, SIDE)).to(INDEX)
    in_n, in0, in1 = n < d_state, p0 < headdim, p1 < headdim

    rate = tl.load(A_ptr + head * A_h).to(SUM) * LOG2E
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + head * bias_h).to(ACC)
    x_ptr += row * x_b + head * x_h
    dt_ptr += row * dt_b + head * dt_h
    B_ptr += row * B_b + group * B_g
    if seq_ptr is not None:
        seq_ptr += row * seq_b

    first, total = _look_back(
        dt_ptr, seq_ptr, rate, bias, begin, end, dt_t, seq_t, dt_min, dt_max, SOFTPLUS, ACC, SUM
    )
    state0 = tl.zeros((N, MAIN), ACC)
    state1 = tl.zeros((N, SIDE), ACC)
    if cu_ptr is not None:
        if first_ptr is not None:
            # the initial state enters the sequence of token 0, where that still remembers it
            entered = n < tl.where((first == 0) & (begin < end), d_state, 0)
            first_ptr += head * first_h
            state0 = load_state(first_ptr, n, first_n, p0, first_p, entered, in0, ACC)
            if TAIL > 0:
                state1 = load_state(first_ptr, n, first_n, p1, first_p, entered, in1, ACC)

    ahead = tl.load(dt_ptr + (first + i) * dt_t, mask=first + i < end, other=0.0)
    for start in range(first, end, Q):
        t = start + i
        live = i < (end - start).to(tl.int32)
        delta = step_sizes(ahead, bias, dt_min, dt_max, live, SOFTPLUS, ACC)
        ahead = tl.load(dt_ptr + (t + Q) * dt_t, mask=t + Q < end, other=0.0)
        g, g_low = two_floats(tl.cumsum(log_decays(delta, rate, SUM), 0), ACC)
        end_g, end_low = at_end(g, Q), at_end(g_low, Q)
        sent = delta * tl.exp2(between(end_g, end_low, g, g_low, TWO))
        kept = tl.exp2(between(end_g, end_low, 0.0, 0.0, TWO))
        if seq_ptr is not None:
            borders = tl.cumsum(resets(seq_ptr, t, seq_t, live), 0)
            crossed = at_end(borders, Q)
            sent = tl.where(borders == crossed, sent, 0.0)
            kept = tl.where(crossed == 0, kept, 0.0)
        B = tile(B_ptr + start * B_t, rows, B_t, n, B_n, live, in_n).to(DOT)
        x0 = tile(x_ptr + start * x_t, rows, x_t, p0, x_p, live, in0)
        state0 = advance(state0, B, x0, sent, kept, ACC)
        if TAIL > 0:
            x1 = tile(x_ptr + start * x_t, rows, x_t, p1, x_p, live, in1)
            state1 = advance(state1, B, x1, sent, kept, ACC)

    at = (row * pieces + part) * nheads + head
    state_ptr += at * headdim * d_state
    store_state(state_ptr, state0, n, p0, d_state, in_n, in0)
    if TAIL > 0:
        store_state(state_ptr, state1, n, p1, d_state, in_n, in1)
    if fade_ptr is not None:
        # every block of channels writes the same number
        tl.store(fade_ptr + at, tl.exp2(total).to(fade_ptr.dtype.element_ty))
