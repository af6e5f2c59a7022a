"""Device functions of the scan's backward kernels: bounds of a chunk, tiles, decays,
and masked loads of x, B, C and states.

A head's channels are divided into tiles of 64, then 32, then 16, so that no multiple of 16 is
padded: 80 = 64 + 16. A chunk has CHUNK_SIZE tokens, or those between two `bounds`, never more.
`cumsum` (batch, nheads, pitch) is the running sum of the log2-decays from the chunk's first token
on. Where dots are float32, a second such tensor `low_offset` elements behind it holds what rounding
to float32 lost (TWO_FLOATS), so that differences are exact. `resets` (batch, seqlen) counts the
resets of the state up to each token, n, and holds -2 - n for the tokens of a sequence with NaN or
infinity: those are not loaded, as products with 0 would carry them to the sequence's neighbours.
No exponent is above 0.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import at_most
from tvkernels.core.tune import dot_precision
from tvkernels.ssd.device import log_between


def configs(warps_and_stages):
    """Configurations by target, from tuples (warps, stages)."""
    return {
        target: [
            triton.Config(
                {"DOT_PRECISION": dot_precision(target)}, num_warps=warps, num_stages=stages
            )
            for warps, stages in pairs
        ]
        for target, pairs in warps_and_stages.items()
    }


def count_tiles(headdim):
    """Number of tiles that `tile_channels` divides a head into."""
    blocks = triton.cdiv(headdim, 16)
    return blocks // 4 + (blocks % 4 + 1) // 2


@triton.jit
def tile_channels(k: tl.constexpr, HEADDIM: tl.constexpr):
    """The channels of tile k, int64."""
    ROUND: tl.constexpr = (HEADDIM + 15) // 16 * 16
    WIDE: tl.constexpr = ROUND // 64
    REST: tl.constexpr = ROUND % 64
    HALF: tl.constexpr = k == WIDE and REST >= 32
    WIDTH: tl.constexpr = 64 if k < WIDE else (32 if HALF else 16)
    FIRST: tl.constexpr = 64 * k if k <= WIDE else 64 * WIDE + 32
    return FIRST + tl.arange(0, WIDTH).to(tl.int64)


@triton.jit
def bounds_of(bounds_ptr, chunk, seqlen, CHUNK_SIZE: tl.constexpr):
    """The first token of a chunk, and the one behind its last."""
    start = chunk * CHUNK_SIZE
    stop = tl.minimum(start + CHUNK_SIZE, seqlen)
    if bounds_ptr is not None:
        start = tl.load(bounds_ptr + chunk)
        stop = tl.load(bounds_ptr + chunk + 1)
    return start, stop


@triton.jit
def is_stored(bounds_ptr, at, start, stop, CHUNK_SIZE: tl.constexpr):
    """Whether cumsum and the other vectors have an element for token `at` of a chunk. Without
    `bounds` every chunk, the last one too, has CHUNK_SIZE elements: no mask depends on the length.
    """
    stored = at < CHUNK_SIZE
    if bounds_ptr is not None:
        stored = start + at < stop
    return stored


@triton.jit
def is_sound(resets_ptr, t, stop):
    """Which of the tokens t before `stop` are of a sequence without NaN and infinity."""
    sound = t < stop
    if resets_ptr is not None:
        sound = sound & (tl.load(resets_ptr + t, mask=sound, other=-1) >= 0)
    return sound


@triton.jit
def spoil(value, sound, resets_ptr):
    """`value`, but NaN where not sound."""
    if resets_ptr is not None:
        value = tl.where(sound, value, float("nan"))
    return value


@triton.jit
def load_tile(
    ptr, t, sound, token_stride, channel_stride,
    k: tl.constexpr, HEADDIM: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Tile k of a head's tokens t, (tokens, channels), 0 where not sound."""
    channel = tile_channels(k, HEADDIM)
    mask = sound[:, None] & (channel < HEADDIM)[None, :]
    at = (t * token_stride)[:, None] + (channel * channel_stride)[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def load_bc(
    ptr, t, sound, token_stride, dstate_stride,
    D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr, DOT_DTYPE: tl.constexpr,
):  # fmt: skip
    """B or C of the tokens t, (tokens, BLOCK_DSTATE), 0 where not sound."""
    n = tl.arange(0, BLOCK_DSTATE).to(tl.int64)
    mask = sound[:, None] & (n < D_STATE)[None, :]
    at = (t * token_stride)[:, None] + (n * dstate_stride)[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0).to(DOT_DTYPE)


@triton.jit
def state_tile(
    k: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr
):
    """Offsets and mask of tile k of a stored state (d_state, headdim): (BLOCK_DSTATE, channels)."""
    channel = tile_channels(k, HEADDIM)
    n = tl.arange(0, BLOCK_DSTATE)
    mask = (n < D_STATE)[:, None] & (channel < HEADDIM)[None, :]
    return (n * HEADDIM)[:, None] + channel[None, :], mask


@triton.jit
def load_state(
    ptr, k: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr
):
    at, mask = state_tile(k, HEADDIM, D_STATE, BLOCK_DSTATE)
    return tl.load(ptr + at, mask=mask, other=0.0)


@triton.jit
def load_cumsum(cumsum_ptr, low_offset, t, mask, TWO_FLOATS: tl.constexpr):
    """The running sum of log2-decays at tokens t, and what rounding to float32 lost of it."""
    cumsum = tl.load(cumsum_ptr + t, mask=mask, other=0.0)
    cumsum_low = cumsum
    if TWO_FLOATS:
        cumsum_low = tl.load(cumsum_ptr + low_offset + t, mask=mask, other=0.0)
    return cumsum, cumsum_low


@triton.jit
def decay_between(later, later_low, earlier, earlier_low, TWO_FLOATS: tl.constexpr):
    """The decay of the state from one token to a later one, from their running sums."""
    gap = log_between(later, later_low, earlier, earlier_low, TWO_FLOATS)
    return tl.exp2(at_most(gap, 0.0))


@triton.jit
def decay_to_end(cumsum_ptr, low_offset, resets_ptr, t, stored, stop, TWO_FLOATS: tl.constexpr):
    """The decay from each token to the chunk's end, 0 across a reset."""
    cumsum, cumsum_low = load_cumsum(cumsum_ptr, low_offset, t, stored, TWO_FLOATS)
    # a chunk without tokens at the start of the sequence has no last token
    last = tl.maximum(stop - 1, 0)
    end, end_low = load_cumsum(cumsum_ptr, low_offset, last, stop > 0, TWO_FLOATS)
    decay = decay_between(end, end_low, cumsum, cumsum_low, TWO_FLOATS)
    decay = tl.where(t < stop, decay, 0.0)
    if resets_ptr is not None:
        same = tl.load(resets_ptr + t, mask=t < stop, other=-1) == tl.load(resets_ptr + last)
        decay = tl.where(same, decay, 0.0)
    return decay


@triton.jit
def decay_from_start(
    cumsum_ptr, low_offset, resets_ptr, t, stored, start, stop, TWO_FLOATS: tl.constexpr
):
    """The decay of the state before the chunk at each token, 0 across a reset."""
    cumsum, cumsum_low = load_cumsum(cumsum_ptr, low_offset, t, stored, TWO_FLOATS)
    decay = tl.where(t < stop, decay_between(cumsum, cumsum_low, 0.0, 0.0, TWO_FLOATS), 0.0)
    if resets_ptr is not None:
        before = tl.load(resets_ptr + tl.maximum(start - 1, 0))
        same = tl.load(resets_ptr + t, mask=t < stop, other=-1) == before
        decay = tl.where(same, decay, 0.0)
    return decay


@triton.jit
def chunk_decay(cumsum_ptr, low_offset, resets_ptr, start, stop, TWO_FLOATS: tl.constexpr):
    """The decay of the state from before the chunk to its end, a number; 0 across a reset."""
    last = tl.maximum(stop - 1, 0)
    end, end_low = load_cumsum(cumsum_ptr, low_offset, last, stop > start, TWO_FLOATS)
    decay = decay_between(end, end_low, 0.0, 0.0, TWO_FLOATS)
    if resets_ptr is not None:
        # at token 0 there is no token before: it continues the initial state
        before = tl.load(resets_ptr + tl.maximum(start - 1, 0), mask=stop > 0, other=0)
        after = tl.load(resets_ptr + last, mask=stop > 0, other=0)
        decay = tl.where(before == after, decay, 0.0)
    return decay


@triton.jit
def reached(resets_ptr, start, stop, first, second):
    """Whether the chunk's token `second` sees `first`: not before it, and no reset in between."""
    reaches = (first <= second) & (second < (stop - start).to(tl.int32))
    if resets_ptr is not None:
        first, second = start + first, start + second
        of_first = tl.load(resets_ptr + first, mask=first < stop, other=-1)
        of_second = tl.load(resets_ptr + second, mask=second < stop, other=-1)
        reaches = reaches & (of_first == of_second)
    return reaches
