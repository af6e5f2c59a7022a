"""The walk: one program takes one head through one segment of a sequence, chunk after chunk."""

import triton
import triton.language as tl

from tvkernels.core.tl import silu
from tvkernels.core.tune import tuned
from tvkernels.ssd.tiles_kernel import (
    LOG2E,
    advance,
    between,
    channels,
    chunk_decays,
    configs,
    if_given,
    load_state,
    store_state,
    tile,
    tiles_of,
    whose,
)


@triton.jit
def _entering(
    first_ptr, piece_ptr, fade_ptr, row, head, part, segments, pieces, nheads, headdim, d_state,
    first_b, first_h, first_p, first_n, n, in_n, p, in_p,
    N: tl.constexpr, SIZE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The state that enters the segment: that of token 0, taken through the pieces before."""
    state = tl.zeros((N, SIZE), ACC)
    if first_ptr is not None:
        source = first_ptr + row * first_b + head * first_h
        state = load_state(source, n, first_n, p, first_p, in_n, in_p, ACC)
    for piece in range(part * pieces):
        at = (row * (segments - 1) * pieces + piece) * nheads + head
        # a name of its own: the initial state's may be of another dtype
        of_piece = piece_ptr + at * headdim * d_state
        added = load_state(of_piece, n, 1, p, d_state, in_n, in_p, ACC)
        state = state * tl.load(fade_ptr + at) + added
    return state


@triton.jit
def _scores(
    C, B, delta, g, g_low, borders, SEQ: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """What token i (row) takes of x_j (column): exp(log-decay between them) (C_i . B_j) delta_j."""
    scores = tl.dot(C, tl.trans(B), input_precision=PRECISION, out_dtype=ACC)
    i = tl.arange(0, g.shape[0])
    linked = i[:, None] >= i[None, :]
    if SEQ:
        linked = linked & (borders[:, None] == borders[None, :])
    # masked before exp: a path backwards in time would be a growth, and overflow
    if tl.float32 == SUM:
        # of 16 bit tensors delta, which is not negative, comes in with the exponent
        path = g[:, None] - (g - tl.log2(delta))[None, :]
        scores *= tl.exp2(tl.where(linked, path, float("-inf")))
    else:
        path = between(g[:, None], g_low[:, None], g[None, :], g_low[None, :], SUM != ACC)
        scores *= tl.exp2(tl.where(linked, path, float("-inf"))) * delta[None, :]
    return scores.to(B.dtype)


@triton.jit
def _through(
    state, scores, B, C, reads, adds, kept, skip, x_ptr, D_ptr, z_ptr, out_ptr, at, rows, live, x_t,
    z_t, out_t, p, in_p, x_p, D_p, z_p, D_OF_HEAD: tl.constexpr, EXACT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Some channels through a chunk: store out, what the tokens read of the state, of each other, D
    x, the gate; return the state that leaves."""
    x = tile(x_ptr + at * x_t, rows, x_t, p, x_p, live, in_p, EXACT).to(B.dtype)
    y = tl.dot(C, state.to(C.dtype), input_precision=PRECISION, out_dtype=ACC) * reads[:, None]
    y = tl.dot(scores, x, acc=y, input_precision=PRECISION, out_dtype=ACC)
    if D_ptr is not None:
        D = skip if D_OF_HEAD else tl.load(D_ptr + p * D_p, mask=in_p, other=0.0).to(ACC)[None, :]
        y += D * x.to(ACC)
    if z_ptr is not None:
        # the state first, so that what it takes is out of its registers before the gate comes
        state = advance(state, B, x, adds, kept, PRECISION, ACC)
        y *= silu(tile(z_ptr + at * z_t, rows, z_t, p, z_p, live, in_p, EXACT).to(ACC))
    mask = live[:, None]
    if not EXACT:
        mask = mask & in_p[None, :]
    to = rows[:, None] * out_t + p.to(rows.dtype)[None, :]
    tl.store(out_ptr + at * out_t + to, y.to(out_ptr.dtype.element_ty), mask=mask)
    if z_ptr is None:
        state = advance(state, B, x, adds, kept, PRECISION, ACC)
    return state


@triton.constexpr_function
def _stages(n, dtype):
    """Of the loop over the chunks: two of 256 entries in 32 bit have no room."""
    return 1 if n * dtype.primitive_bitwidth > 8 * 512 else None


# Q tokens are a chunk: at 64 the products within chunks and with the state cost about the same
WALK_CONFIGS = configs(
    {
        "default": ((64, 4, 2), (64, 8, 2), (32, 4, 2), (32, 4, 1)),
        "sm_80": ((64, 8, 1), (64, 8, 2), (32, 4, 2)),
        "sm_90": ((64, 4, 2),),
        "sm_100": ((64, 4, 2), (64, 8, 2)),
        "sm_120": ((64, 8, 1), (32, 4, 2), (32, 4, 1)),
        "gfx942": ((64, 4, 1), (64, 8, 1), (32, 4, 1)),
    }
)

# what a new length changes is no reason to compile anew. Not here: a stride of the batch, which is
# a multiple of 16 wherever that of a token is, and loads have to know that
ANY_LENGTH = ["end_of_all", "segment", "segments", "pieces", "dt_b", "seq_b"]


@tuned(WALK_CONFIGS, key=["N", "WIDTHS", "heads_per_group", "SOFTPLUS"])
@triton.jit(do_not_specialize=ANY_LENGTH)
def walk_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, first_ptr, seq_ptr,
    piece_ptr, fade_ptr, out_ptr, last_ptr,
    end_of_all: tl.int64, segment: tl.int64, segments, pieces, nheads, heads_per_group,
    headdim, d_state, dt_min, dt_max, x_b: tl.int64, x_t, x_h, x_p, dt_b: tl.int64, dt_t, dt_h, A_h,
    B_b: tl.int64, B_t, B_g, B_n, C_b: tl.int64, C_t, C_g, C_n, D_h, D_p, z_b: tl.int64, z_t, z_h,
    z_p, bias_h, first_b: tl.int64, first_h, first_p, first_n, seq_b: tl.int64, seq_t, out_t, out_h,
    N: tl.constexpr, WIDTHS: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr,
    D_OF_HEAD: tl.constexpr, ALIKE: tl.constexpr, SOFTPLUS: tl.constexpr, ACC: tl.constexpr,
    SUM: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr, OFFSET: tl.constexpr,
    Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns WIDTH channels of one head in one segment of one sequence
    block, head, part, row = whose(BLOCKS, nheads, segments)
    begin = (part * segment).to(tl.int32)
    end = tl.minimum(part * segment + segment, end_of_all).to(tl.int32)
    n, in_n = channels(0, N, d_state)
    p, in_p = tiles_of(block * WIDTH, headdim, WIDTHS)

    x_ptr += row * x_b + head * x_h
    dt_ptr += row * dt_b + head * dt_h
    B_ptr += row * B_b + head // heads_per_group * B_g
    C_ptr += row * C_b + head // heads_per_group * C_g
    if ALIKE:
        C_t, C_n = B_t, B_n
    out_ptr += row * end_of_all * out_t + head * out_h
    rate = tl.load(A_ptr + head * A_h).to(SUM) * LOG2E
    bias = if_given(bias_ptr, head * bias_h, ACC)
    D_ptr = None if D_ptr is None else D_ptr + head * D_h
    skip = if_given(D_ptr if D_OF_HEAD else None, 0, ACC)
    z_ptr = None if z_ptr is None else z_ptr + row * z_b + head * z_h
    seq_ptr = None if seq_ptr is None else seq_ptr + row * seq_b

    state = ()
    for i in tl.static_range(len(WIDTHS)):
        entering = _entering(
            first_ptr, piece_ptr, fade_ptr, row, head, part, segments, pieces, nheads, headdim,
            d_state, first_b, first_h, first_p, first_n, n, in_n, p[i], in_p[i], N, WIDTHS[i], ACC,
        )  # fmt: skip
        state += (entering,)
    t = (begin + tl.arange(0, Q)).to(tl.int64)
    ahead = tl.load(dt_ptr + t * dt_t, mask=t < end, other=0.0)
    # what could be computed before the loop would cost registers in it, and spills
    for start in tl.range(begin, end, Q, num_stages=_stages(N, DOT), disable_licm=True):
        t = start + tl.arange(0, Q)
        live = t < end
        t = t.to(tl.int64)
        raw = ahead
        ahead = tl.load(dt_ptr + (t + Q) * dt_t, mask=t + Q < end, other=0.0)
        delta, g, g_low, borders, reads, adds, kept = chunk_decays(
            raw, t, live, seq_ptr, seq_t, rate, bias, dt_min, dt_max, Q, SOFTPLUS, ACC, SUM
        )
        at, rows = tl.cast(start, tl.int64), tl.arange(0, Q).to(OFFSET)
        B = tile(B_ptr + at * B_t, rows, B_t, n, B_n, live, in_n, EXACT).to(DOT)
        C = tile(C_ptr + at * C_t, rows, C_t, n, C_n, live, in_n, EXACT).to(DOT)
        scores = _scores(C, B, delta, g, g_low, borders, seq_ptr is not None, PRECISION, ACC, SUM)
        new = ()
        for i in tl.static_range(len(WIDTHS)):
            leaving = _through(
                state[i], scores, B, C, reads, adds, kept, skip, x_ptr, D_ptr, z_ptr, out_ptr, at,
                rows, live, x_t, z_t, out_t, p[i], in_p[i], x_p, D_p, z_p, D_OF_HEAD, EXACT,
                PRECISION, ACC,
            )  # fmt: skip
            new += (leaving,)
        state = new
    if part == segments - 1:
        last_ptr += (row * nheads + head) * headdim * d_state
        for i in tl.static_range(len(WIDTHS)):
            store_state(last_ptr, state[i], n, p[i], d_state, in_n, in_p[i])
