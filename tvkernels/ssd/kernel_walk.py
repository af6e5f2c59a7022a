"""The walk: one program takes one head through one segment of a sequence, chunk after chunk."""

import triton
import triton.language as tl

from tvkernels.core.tl import silu
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


@triton.jit
def _outputs(
    mixing, C, state, x, enter, D_ptr, z_ptr, out_ptr, p, d_p, rows, z_t, z_p, out_t, live, within,
    ACC: tl.constexpr,
):  # fmt: skip
    """Store a tile of out: what the tokens read of the state, of each other, D x, the gate."""
    y = tl.dot(C, state.to(C.dtype), input_precision="ieee", out_dtype=ACC) * enter[:, None]
    y = tl.dot(mixing, x, acc=y, input_precision="ieee", out_dtype=ACC)
    if D_ptr is not None:
        y += tl.load(D_ptr + p * d_p, mask=within, other=0.0).to(ACC)[None, :] * x.to(ACC)
    if z_ptr is not None:
        y *= silu(tile(z_ptr, rows, z_t, p, z_p, live, within).to(ACC))
    at = rows[:, None] * out_t + p[None, :]
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=live[:, None] & within[None, :])


@triton.jit
def advance(state, B, x, sent, kept, ACC: tl.constexpr):
    """The state that leaves a chunk: `kept` of what entered, and `sent` of each token."""
    tokens = (x.to(ACC) * sent[:, None]).to(B.dtype)
    return tl.dot(tl.trans(B), tokens, acc=state * kept, input_precision="ieee", out_dtype=ACC)


def _configs(*choices):
    return [
        triton.Config({"Q": q}, num_warps=warps, num_stages=stages) for q, warps, stages in choices
    ]


WALK_CONFIGS = {
    "default": _configs((64, 4, 2), (64, 4, 1), (64, 8, 2), (32, 4, 2)),
    "sm_80": _configs((64, 8, 1), (64, 8, 2), (32, 4, 2)),
    "sm_90": _configs((64, 4, 2), (64, 4, 1)),
    "sm_100": _configs((64, 4, 2), (64, 8, 2)),
    "sm_120": _configs((64, 8, 1), (32, 4, 2), (32, 4, 1)),
    "gfx942": _configs((64, 4, 1), (64, 8, 1), (32, 4, 1)),
}


# what a new length changes: no reason to compile anew
LENGTHS = ["end_of_all", "segment", "segments", "pieces", "x_b", "dt_b", "B_b", "C_b", "z_b", "first_b", "seq_b"]


@tuned(WALK_CONFIGS, key=["N", "MAIN", "TAIL", "heads_per_group", "SOFTPLUS"])
@triton.jit(do_not_specialize=LENGTHS)
def walk_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, first_ptr, seq_ptr,
    piece_ptr, fade_ptr, out_ptr, last_ptr,
    end_of_all: tl.int64, segment: tl.int64, segments, pieces, nheads, heads_per_group,
    headdim, d_state, dt_min, dt_max,
    x_b: tl.int64, x_t, x_h, x_p, dt_b: tl.int64, dt_t, dt_h, A_h, B_b: tl.int64, B_t, B_g, B_n,
    C_b: tl.int64, C_t, C_g, C_n, D_h, D_p, z_b: tl.int64, z_t, z_h, z_p, bias_h,
    first_b: tl.int64, first_h, first_p, first_n, seq_b: tl.int64, seq_t, out_t, out_h,
    N: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCKS: tl.constexpr,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr, DOT: tl.constexpr,
    INDEX: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    # one program owns MAIN + TAIL channels of one head in one segment of one sequence; neighbours
    # own the other channels, then the other heads of the group, which read the same B and C
    pid = tl.program_id(0)
    block = pid % BLOCKS
    head = ((pid // BLOCKS) % nheads).to(tl.int64)
    part = (pid // (BLOCKS * nheads)) % segments
    row = (pid // (BLOCKS * nheads * segments)).to(tl.int64)
    group = head // heads_per_group
    begin = part * segment
    end = tl.minimum(begin + segment, end_of_all)

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
    C_ptr += row * C_b + group * C_g
    out_ptr += row * end_of_all * out_t + head * out_h
    if D_ptr is not None:
        D_ptr += head * D_h
    if z_ptr is not None:
        z_ptr += row * z_b + head * z_h
    if seq_ptr is not None:
        seq_ptr += row * seq_b

    # the state that enters the segment: that of token 0, through the pieces before
    state0 = tl.zeros((N, MAIN), ACC)
    state1 = tl.zeros((N, SIDE), ACC)
    if first_ptr is not None:
        first_ptr += row * first_b + head * first_h
        state0 = load_state(first_ptr, n, first_n, p0, first_p, in_n, in0, ACC)
        if TAIL > 0:
            state1 = load_state(first_ptr, n, first_n, p1, first_p, in_n, in1, ACC)
    if piece_ptr is not None:
        for piece in range(part * pieces):
            at = (row * (segments - 1) * pieces + piece) * nheads + head
            fade = tl.load(fade_ptr + at)
            source = piece_ptr + at * headdim * d_state
            state0 = state0 * fade + load_state(source, n, 1, p0, d_state, in_n, in0, ACC)
            if TAIL > 0:
                state1 = state1 * fade + load_state(source, n, 1, p1, d_state, in_n, in1, ACC)

    ahead = tl.load(dt_ptr + (begin + i) * dt_t, mask=begin + i < end, other=0.0)
    for start in range(begin, end, Q):
        t = start + i
        live = i < (end - start).to(tl.int32)
        delta = step_sizes(ahead, bias, dt_min, dt_max, live, SOFTPLUS, ACC)
        ahead = tl.load(dt_ptr + (t + Q) * dt_t, mask=t + Q < end, other=0.0)
        g, g_low = two_floats(tl.cumsum(log_decays(delta, rate, SUM), 0), ACC)
        total, total_low = at_end(g, Q), at_end(g_low, Q)
        linked = i[:, None] >= i[None, :]
        enter = tl.exp2(between(g, g_low, 0.0, 0.0, TWO))
        sent = delta * tl.exp2(between(total, total_low, g, g_low, TWO))
        kept = at_end(enter, Q)
        if seq_ptr is not None:
            borders = tl.cumsum(resets(seq_ptr, t, seq_t, live), 0)
            crossed = at_end(borders, Q)
            linked = linked & (borders[:, None] == borders[None, :])
            enter = tl.where(borders == 0, enter, 0.0)
            sent = tl.where(borders == crossed, sent, 0.0)
            kept = tl.where(crossed == 0, kept, 0.0)

        B = tile(B_ptr + start * B_t, rows, B_t, n, B_n, live, in_n).to(DOT)
        C = tile(C_ptr + start * C_t, rows, C_t, n, C_n, live, in_n).to(DOT)
        x0 = tile(x_ptr + start * x_t, rows, x_t, p0, x_p, live, in0).to(DOT)
        path = between(g[:, None], g_low[:, None], g[None, :], g_low[None, :], TWO)
        # masked before exp: a path backwards in time would be a growth, and overflow
        scores = tl.exp2(tl.where(linked, path, float("-inf"))) * delta[None, :]
        scores *= tl.dot(C, tl.trans(B), input_precision="ieee", out_dtype=ACC)
        mixing = scores.to(B.dtype)
        z_at = z_ptr
        if z_ptr is not None:
            z_at = z_ptr + start * z_t
        out_at = out_ptr + start * out_t
        _outputs(
            mixing, C, state0, x0, enter, D_ptr, z_at, out_at, p0, D_p, rows, z_t, z_p, out_t,
            live, in0, ACC,
        )  # fmt: skip
        state0 = advance(state0, B, x0, sent, kept, ACC)
        if TAIL > 0:
            x1 = tile(x_ptr + start * x_t, rows, x_t, p1, x_p, live, in1).to(DOT)
            _outputs(
                mixing, C, state1, x1, enter, D_ptr, z_at, out_at, p1, D_p, rows, z_t, z_p, out_t,
                live, in1, ACC,
            )  # fmt: skip
            state1 = advance(state1, B, x1, sent, kept, ACC)

    if part == segments - 1:
        if last_ptr is not None:
            last_ptr += (row * nheads + head) * headdim * d_state
            store_state(last_ptr, state0, n, p0, d_state, in_n, in0)
            if TAIL > 0:
                store_state(last_ptr, state1, n, p1, d_state, in_n, in1)
