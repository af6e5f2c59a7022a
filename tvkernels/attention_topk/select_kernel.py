"""Triton kernels of the ordered top-k: a radix search for the threshold, then a compaction.

Scores are not negative, so their bits order as they do; every NaN is the same, highest key. A pass
counts in each part of the keys how often each value of the next digit (8 bits) follows the digits
found so far; the next pass adds up the parts' counts, as integers, and finds that digit of the
keep-th highest key. The last pass writes the indices of the keys above the threshold and of its
first ties, in order. Nothing is sorted, and no program waits for another.
"""

import torch
import triton
import triton.language as tl

BINS = tl.constexpr(256)
# parts whose counts are added up at a time
TOGETHER = tl.constexpr(16)
# keys of one step of a program; most parts of a sequence
BLOCK, MOST_PARTS = 2048, 128


@triton.jit
def _keys(scores_ptr, at, live):
    x = tl.load(scores_ptr + at, mask=live, other=0.0)
    if x.dtype == tl.float64:
        key = tl.where(
            x == x, x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF
        )
    else:
        key = tl.where(x == x, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7FFFFFFF)
    return key


@triton.jit
def _counts(counts_ptr, first, parts):
    """Counts of TOGETHER parts (TOGETHER, BINS), 0 beyond `parts`."""
    part = first + tl.arange(0, TOGETHER)[:, None]
    at = counts_ptr + part * BINS + tl.arange(0, BINS)[None, :]
    return tl.load(at, mask=part < parts, other=0)


@triton.jit
def _next_digit(counts_ptr, parts, left):
    """Digit of the left-th highest of the counted keys, and its rank among the keys with it."""
    total = tl.zeros((BINS,), tl.int32)
    for first in range(0, parts, TOGETHER):
        total += tl.sum(_counts(counts_ptr, first, parts), 0)
    at_least = tl.sum(total, 0) - tl.cumsum(total, 0) + total
    # keep == 0: use the highest key as threshold and take none of its ties
    digit = tl.sum((at_least >= tl.maximum(left, 1)).to(tl.int32), 0) - 1
    above = tl.sum(tl.where(tl.arange(0, BINS) > digit, total, 0), 0)
    return digit, left - above


@triton.jit
def _found(state_ptr, counts_ptr, batch, parts, LEVEL: tl.constexpr, LEVELS: tl.constexpr):
    """The threshold's digits up to that of LEVEL, and its rank among the keys with this prefix."""
    state_ptr += (batch * LEVELS + LEVEL) * 2
    counts_ptr += (LEVEL * tl.num_programs(1) + batch) * parts * BINS
    digit, left = _next_digit(counts_ptr, parts, tl.load(state_ptr + 1))
    return tl.load(state_ptr) * BINS + digit, left


@triton.jit(do_not_specialize=["length", "keep", "each", "parts"])
def digits_kernel(
    scores_ptr, state_ptr, counts_ptr, above_ptr, length, keep, each, parts,
    LEVEL: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program owns one part of a sequence's keys, and counts the digits of LEVEL of the keys
    # that share the threshold's prefix
    part, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    SHIFT: tl.constexpr = 8 * (LEVELS - LEVEL - 1)
    if LEVEL == 0:
        prefix, left = tl.program_id(1).to(tl.int64) * 0, keep
    else:
        prefix, left = _found(state_ptr, counts_ptr, batch, parts, LEVEL - 1, LEVELS)
    if part == 0:
        tl.store(state_ptr + (batch * LEVELS + LEVEL) * 2, prefix)
        tl.store(state_ptr + (batch * LEVELS + LEVEL) * 2 + 1, left)
    scores_ptr += batch * length
    count, above = tl.zeros((BINS,), tl.int32), 0
    for start in range(part * each, tl.minimum((part + 1) * each, length), BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = at < length
        key = _keys(scores_ptr, at, live)
        alike = live
        if LEVEL > 0:
            alike = live & ((key >> (SHIFT + 8)) == prefix.to(key.dtype))
        digit = ((key >> SHIFT) & 255).to(tl.int32)
        count += tl.histogram(digit, BINS, mask=alike)
        if SHIFT == 0:
            above += tl.sum((live & ((key >> 8) > prefix.to(key.dtype))).to(tl.int32), 0)
    at = (LEVEL * tl.num_programs(1) + batch) * parts + part
    tl.store(counts_ptr + at * BINS + tl.arange(0, BINS), count)
    if SHIFT == 0:
        tl.store(above_ptr + batch * parts + part, above)


@triton.jit(do_not_specialize=["length", "keep", "each", "parts"])
def ranks_kernel(
    scores_ptr, state_ptr, counts_ptr, above_ptr, kept_ptr, dropped_ptr, length, keep, each, parts,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program owns one part of a sequence's keys, and writes where they are kept or dropped
    part, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    threshold, left = _found(state_ptr, counts_ptr, batch, parts, LEVELS - 1, LEVELS)
    counts_ptr += ((LEVELS - 1) * tl.num_programs(1) + batch) * parts * BINS
    digit = (threshold & 255).to(tl.int32)
    bins = tl.arange(0, BINS)[None, :]
    # keys of earlier parts that are above the threshold, and that equal it
    above, equal = 0, 0
    for first in range(0, part, TOGETHER):
        before = first + tl.arange(0, TOGETHER)
        above += tl.sum(tl.load(above_ptr + batch * parts + before, mask=before < part, other=0), 0)
        count = _counts(counts_ptr, first, part)
        above += tl.sum(tl.sum(tl.where(bins > digit, count, 0), 1), 0)
        equal += tl.sum(tl.sum(tl.where(bins == digit, count, 0), 1), 0)
    scores_ptr += batch * length
    kept_ptr += batch * keep
    dropped_ptr += batch * (length - keep)
    for start in range(part * each, tl.minimum((part + 1) * each, length), BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = at < length
        key = _keys(scores_ptr, at, live)
        on = (live & (key == threshold.to(key.dtype))).to(tl.int32)
        higher = (live & (key > threshold.to(key.dtype))).to(tl.int32)
        # take ties from the front until `left` of them are taken
        taken = higher + tl.where(equal + tl.cumsum(on, 0) <= left, on, 0)
        rank = above + tl.minimum(equal, left) + tl.cumsum(taken, 0) - taken
        tl.store(kept_ptr + rank, at.to(tl.int64), mask=taken > 0)
        tl.store(dropped_ptr + at - rank, at.to(tl.int64), mask=live & (taken == 0))
        above += tl.sum(higher, 0)
        equal += tl.sum(on, 0)


def topk_in_order(scores, keep):
    """(batch, keep) and (batch, length - keep): the keep highest and the rest, both ascending."""
    batch, length = scores.shape
    kept = torch.empty(batch, keep, dtype=torch.int64, device=scores.device)
    dropped = kept.new_empty(batch, length - keep)
    each = BLOCK * triton.cdiv(length, BLOCK * MOST_PARTS)
    parts, levels = triton.cdiv(length, each), scores.dtype.itemsize
    state = kept.new_empty(batch, levels, 2)
    counts = torch.empty(levels, batch, parts, BINS.value, dtype=torch.int32, device=scores.device)
    above = counts.new_empty(batch, parts)
    shared = (scores, state, counts, above)
    for level in range(levels):
        digits_kernel[(parts, batch)](
            *shared, length, keep, each, parts,
            LEVEL=level, LEVELS=levels, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
    ranks_kernel[(parts, batch)](
        *shared, kept, dropped, length, keep, each, parts,
        LEVELS=levels, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return kept, dropped
