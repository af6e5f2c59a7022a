"""What the kernels of the scan's backward share: the bounds of a chunk, its tiles, its decays.

A head of any size is taken in pieces of 64 channels, then 32, then 16, so that no multiple of 16 is
padded: 80 = 64 + 16. A chunk is T tokens, or what `ends` says, never more. `log` (batch, nheads,
pitch) is the sum of the log2-decays from the chunk's first token on; where products are float32 a
second one behind it holds what float32 left of the first, so that differences are exact.
`segment` (batch, seqlen) counts the resets of the state up to each token. No exponent is above 0.
"""

import triton
import triton.language as tl


def configs(warps_and_stages):
    """Configurations by target. DOT: how float32 is multiplied, on AMD by its own instructions, on
    NVIDIA as three products of TF32: without tensor cores a program's registers do not suffice."""
    return {
        target: [
            triton.Config(
                {"DOT": "ieee" if target == "gfx942" else "tf32x3"},
                num_warps=warps,
                num_stages=stages,
            )
            for warps, stages in pairs
        ]
        for target, pairs in warps_and_stages.items()
    }


def count_pieces(headdim):
    blocks = triton.cdiv(headdim, 16)
    return blocks // 4 + (blocks % 4 + 1) // 2


@triton.jit
def columns_of(k: tl.constexpr, HEADDIM: tl.constexpr):
    """The channels of piece k, int64."""
    ROUND: tl.constexpr = (HEADDIM + 15) // 16 * 16
    WIDE: tl.constexpr = ROUND // 64
    REST: tl.constexpr = ROUND % 64
    HALF: tl.constexpr = k == WIDE and REST >= 32
    WIDTH: tl.constexpr = 64 if k < WIDE else (32 if HALF else 16)
    FIRST: tl.constexpr = 64 * k if k <= WIDE else 64 * WIDE + 32
    return FIRST + tl.arange(0, WIDTH).to(tl.int64)


@triton.jit
def bounds_of(ends_ptr, chunk, seqlen, T: tl.constexpr):
    """The first token of a chunk, and the one behind its last."""
    start = chunk * T
    stop = tl.minimum(start + T, seqlen)
    if ends_ptr is not None:
        start = tl.load(ends_ptr + chunk)
        stop = tl.load(ends_ptr + chunk + 1)
    return start, stop


@triton.jit
def held(ends_ptr, at, start, stop, T: tl.constexpr):
    """Whether vectors have a place for a chunk's token `at`: where all chunks are of T tokens each
    has T places, the last one too, so that no mask depends on the length."""
    here = at < T
    if ends_ptr is not None:
        here = start + at < stop
    return here


@triton.jit
def product(a, b, total, DOT: tl.constexpr):
    return tl.dot(a, b, total, input_precision=DOT, out_dtype=total.dtype)


@triton.jit
def load_piece(
    ptr, t, stop, token, channel, k: tl.constexpr, HEADDIM: tl.constexpr, OP: tl.constexpr
):
    """Piece k of a head's tokens t, (tokens, channels), by the strides token and channel."""
    column = columns_of(k, HEADDIM)
    mask = (t < stop)[:, None] & (column < HEADDIM)[None, :]
    at = (t * token)[:, None] + (column * channel)[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0).to(OP)


@triton.jit
def load_rows(ptr, t, stop, token, entry, D_STATE: tl.constexpr, N: tl.constexpr, OP: tl.constexpr):
    """B or C of the tokens t, (tokens, N)."""
    n = tl.arange(0, N).to(tl.int64)
    mask = (t < stop)[:, None] & (n < D_STATE)[None, :]
    at = (t * token)[:, None] + (n * entry)[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0).to(OP)


@triton.jit
def state_piece(k: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr, N: tl.constexpr):
    """Offsets and mask of piece k of a stored state (d_state, headdim), each (N, channels)."""
    column = columns_of(k, HEADDIM)
    n = tl.arange(0, N)
    mask = (n < D_STATE)[:, None] & (column < HEADDIM)[None, :]
    return (n * HEADDIM)[:, None] + column[None, :], mask


@triton.jit
def load_state(ptr, k: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr, N: tl.constexpr):
    at, mask = state_piece(k, HEADDIM, D_STATE, N)
    return tl.load(ptr + at, mask=mask, other=0.0)


@triton.jit
def load_log(log_ptr, low_by, t, mask, PRECISE: tl.constexpr):
    """The log2-decay since the chunk began, and what rounding left of it."""
    log = tl.load(log_ptr + t, mask=mask, other=0.0)
    low = log
    if PRECISE:
        low = tl.load(log_ptr + low_by + t, mask=mask, other=0.0)
    return log, low


@triton.jit
def decay(later, later_low, earlier, earlier_low, PRECISE: tl.constexpr):
    """What of an earlier token's state is left at a later one."""
    gap = later - earlier
    if PRECISE:
        gap += later_low - earlier_low
    return tl.exp2(tl.minimum(gap, 0.0))


@triton.jit
def decay_to_end(log_ptr, low_by, seg_ptr, t, here, stop, PRECISE: tl.constexpr):
    """What of each token is left at the chunk's end."""
    log, low = load_log(log_ptr, low_by, t, here, PRECISE)
    # of a chunk without tokens, that of no token
    last = tl.maximum(stop - 1, 0)
    end, end_low = load_log(log_ptr, low_by, last, stop > 0, PRECISE)
    left = tl.where(t < stop, decay(end, end_low, log, low, PRECISE), 0.0)
    if seg_ptr is not None:
        same = tl.load(seg_ptr + t, mask=t < stop, other=-1) == tl.load(seg_ptr + last)
        left = tl.where(same, left, 0.0)
    return left


@triton.jit
def decay_from_start(log_ptr, low_by, seg_ptr, t, here, start, stop, PRECISE: tl.constexpr):
    """What of the state before the chunk is left at each token."""
    log, low = load_log(log_ptr, low_by, t, here, PRECISE)
    left = tl.where(t < stop, decay(log, low, 0.0, 0.0, PRECISE), 0.0)
    if seg_ptr is not None:
        before = tl.load(seg_ptr + tl.maximum(start - 1, 0))
        same = tl.load(seg_ptr + t, mask=t < stop, other=-1) == before
        left = tl.where(same, left, 0.0)
    return left


@triton.jit
def decay_through(log_ptr, low_by, seg_ptr, start, stop, PRECISE: tl.constexpr):
    """What of the state before the chunk is left at its end, a number."""
    last = tl.maximum(stop - 1, 0)
    end, end_low = load_log(log_ptr, low_by, last, stop > start, PRECISE)
    left = decay(end, end_low, 0.0, 0.0, PRECISE)
    if seg_ptr is not None:
        # token 0 continues what was there before it
        before = tl.load(seg_ptr + tl.maximum(start - 1, 0), mask=stop > 0, other=0)
        after = tl.load(seg_ptr + last, mask=stop > 0, other=0)
        left = tl.where(before == after, left, 0.0)
    return left


@triton.jit
def reached(seg_ptr, start, stop, first, second):
    """Whether what the chunk's token `first` adds to the state is still there at `second`."""
    reaches = (first <= second) & (second < (stop - start).to(tl.int32))
    if seg_ptr is not None:
        first, second = start + first, start + second
        of_first = tl.load(seg_ptr + first, mask=first < stop, other=-1)
        of_second = tl.load(seg_ptr + second, mask=second < stop, other=-1)
        reaches = reaches & (of_first == of_second)
    return reaches
