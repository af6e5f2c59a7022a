"""States without outputs: what a piece adds to the state, and the state after a packed sequence."""

import triton
import triton.language as tl

from tvkernels.core.tune import tuned
from tvkernels.ssd.tiles_kernel import (
    LOG2E,
    advance,
    channels,
    chunk_decays,
    configs,
    if_given,
    load_state,
    log_decays,
    resets,
    step_sizes,
    store_state,
    tile,
    tiles_of,
    whose,
)

# tokens whose decay is summed at a time when looking back for the first one that still counts
LOOK = tl.constexpr(512)


@triton.jit
def _look_back(
    dt_ptr, seq_ptr, rate, bias, begin, end, dt_t, seq_t, dt_min, dt_max,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The first token of [begin, end) that the state at `end` remembers, and log2 of what is left
    of the state before `begin`. What decays below the normal numbers is forgotten."""
    FORGOTTEN: tl.constexpr = -1022.0 if tl.float64 == ACC else -126.0
    first = end
    total = tl.zeros((), SUM)
    while (first > begin) & (total >= FORGOTTEN):
        t = first - LOOK + tl.arange(0, LOOK)
        live = t >= begin
        t = t.to(tl.int64)
        raw = tl.load(dt_ptr + t * dt_t, mask=live, other=0.0)
        delta = step_sizes(raw, bias, dt_min, dt_max, live, SOFTPLUS, ACC)
        total += tl.sum(log_decays(delta, rate, SUM), 0)
        if seq_ptr is not None:
            total += tl.where(tl.sum(resets(seq_ptr, t, seq_t, live), 0) > 0, float("-inf"), 0.0)
        first = tl.maximum(first - LOOK, begin)
    return first, tl.where(total >= FORGOTTEN, total, float("-inf"))


STATE_CONFIGS = configs(
    {
        "default": ((64, 4, 2), (64, 4, 3), (64, 8, 3)),
        "sm_120": ((64, 4, 2), (64, 8, 2), (32, 4, 2)),
        "gfx942": ((64, 4, 1), (32, 4, 1)),
    }
)


@tuned(STATE_CONFIGS, key=["N", "WIDTHS", "heads_per_group", "SOFTPLUS"])
@triton.jit(do_not_specialize=["end_of_all", "piece", "pieces", "dt_b", "seq_b"])
def state_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, first_ptr, seq_ptr, cu_ptr, state_ptr, fade_ptr,
    end_of_all: tl.int64, piece: tl.int64, pieces, nheads, heads_per_group, headdim, d_state,
    dt_min, dt_max, x_b: tl.int64, x_t, x_h, x_p, dt_b: tl.int64, dt_t, dt_h, A_h,
    B_b: tl.int64, B_t, B_g, B_n, bias_h, first_h, first_p, first_n, seq_b: tl.int64, seq_t, cu_s,
    N: tl.constexpr, WIDTHS: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr,
    SOFTPLUS: tl.constexpr, ACC: tl.constexpr, SUM: tl.constexpr, DOT: tl.constexpr,
    EXACT: tl.constexpr, OFFSET: tl.constexpr, Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns the state of WIDTH channels of one head at the end of one piece, or of
    # one packed sequence: the recurrence of seq_idx may have begun before that one's first token
    block, head, part, row = whose(BLOCKS, nheads, pieces)
    group = head // heads_per_group
    begin = (part * piece).to(tl.int32)
    end = tl.minimum(part * piece + piece, end_of_all).to(tl.int32)
    if cu_ptr is not None:
        begin = tl.load(cu_ptr + part * cu_s).to(tl.int32)
        end = tl.load(cu_ptr + (part + 1) * cu_s).to(tl.int32)
        if seq_ptr is not None:
            begin = tl.where(begin < end, 0, begin)
    n, in_n = channels(0, N, d_state)
    p, in_p = tiles_of(block * WIDTH, headdim, WIDTHS)

    x_ptr += row * x_b + head * x_h
    dt_ptr += row * dt_b + head * dt_h
    B_ptr += row * B_b + group * B_g
    rate = tl.load(A_ptr + head * A_h).to(SUM) * LOG2E
    bias = if_given(bias_ptr, head * bias_h, ACC)
    seq_ptr = None if seq_ptr is None else seq_ptr + row * seq_b

    first, total = _look_back(
        dt_ptr, seq_ptr, rate, bias, begin, end, dt_t, seq_t, dt_min, dt_max, SOFTPLUS, ACC, SUM
    )
    state = ()
    for i in tl.static_range(len(WIDTHS)):
        entering = tl.zeros((N, p[i].shape[0]), ACC)
        if first_ptr is not None:
            # the initial state enters the sequence of token 0
            entered = n < tl.where((first == 0) & (begin < end), d_state, 0)
            source = first_ptr + head * first_h
            entering = load_state(source, n, first_n, p[i], first_p, entered, in_p[i], ACC)
        state += (entering,)

    for start in tl.range(first, end, Q, disable_licm=True):
        t = start + tl.arange(0, Q)
        live = t < end
        t = t.to(tl.int64)
        raw = tl.load(dt_ptr + t * dt_t, mask=live, other=0.0)
        _, _, _, _, _, adds, kept = chunk_decays(
            raw, t, live, seq_ptr, seq_t, rate, bias, dt_min, dt_max, Q, SOFTPLUS, ACC, SUM
        )
        at, rows = tl.cast(start, tl.int64), tl.arange(0, Q).to(OFFSET)
        B = tile(B_ptr + at * B_t, rows, B_t, n, B_n, live, in_n, EXACT).to(DOT)
        new = ()
        for i in tl.static_range(len(WIDTHS)):
            x = tile(x_ptr + at * x_t, rows, x_t, p[i], x_p, live, in_p[i], EXACT)
            new += (advance(state[i], B, x, adds, kept, PRECISION, ACC),)
        state = new

    at = (row * pieces + part) * nheads + head
    state_ptr += at * headdim * d_state
    for i in tl.static_range(len(WIDTHS)):
        store_state(state_ptr, state[i], n, p[i], d_state, in_n, in_p[i])
    if fade_ptr is not None:
        # every block of channels writes the same number
        tl.store(fade_ptr + at, tl.exp2(total).to(fade_ptr.dtype.element_ty))
