"""Triton kernel of the matching in token merging: all rounds, one group of tokens per program.

Shapes: x (batch, seqlen, NUM_HEADS x D), read once, for the metric. device.py has the phases of a
round. What one phase writes, the next reads through other threads, so a barrier ends each phase: it
waits for the threads of the program and orders their memory accesses (bar.sync; s_barrier with its
fences). Plain loads see the writes, since no other multiprocessor writes to this program's scratch.

Counted in sectors, 729 x 1152 tokens of 16 bit merged to 16 request 3.18 times the bytes of x: 1.11
for the metric (a head is four and a half sectors), 1.00 for the means, 1.07 for scratch (the rows
are written, read for the products, the even ones once, and read for merging; then there are the
tables of tokens and rows). Memory itself serves x twice, and the result; a program's rows are 350
KB (2 x 2 bytes an entry) and stay in L2. Holding them closer would take shared memory that a phase
can index.
"""

import triton
import triton.language as tl

from tvkernels.core.tune import tuned
from tvkernels.tome.device import (
    BEFORE,
    COUNT_COLS,
    COUNT_ROWS,
    FLOATS,
    INTS,
    POSITION,
    SIZE,
    TARGET,
    TOKENS,
    WEIGHTS,
    choose_targets,
    find_partners,
    follow_tokens,
    link_members,
    merge_members,
    read_metric,
)

RAW, ASCENDING, DESCENDING = (tl.constexpr(i) for i in range(3))


@triton.jit
def _rank_slots(
    sizes_ptr, starts_ptr, ints_ptr, seqlen, old, count,
    ORDER: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Store the final rank of each row, its size, and where its tokens start in `members`."""
    size_ptr = ints_ptr + SIZE * seqlen + old
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        live = row < count
        size = tl.load(size_ptr + row, mask=live, other=0)
        behind = tl.zeros((ROWS, COLS), tl.int32)
        tokens = tl.zeros((ROWS, COLS), tl.int32)
        for other in range(0, count, COLS):
            j = other + tl.arange(0, COLS)
            rival = tl.load(size_ptr + j, mask=j < count, other=0)
            ahead = j[None, :] < row[:, None]
            if ORDER != RAW:
                ahead &= rival[None, :] == size[:, None]
                if ORDER == ASCENDING:
                    ahead |= rival[None, :] < size[:, None]
                else:
                    ahead |= rival[None, :] > size[:, None]
            ahead &= (j < count)[None, :]
            behind += ahead.to(tl.int32)
            tokens += tl.where(ahead, rival[None, :], 0)
        rank, begin = tl.sum(behind, 1), tl.sum(tokens, 1)
        tl.store(ints_ptr + TARGET * seqlen + row, rank, mask=live)
        tl.store(ints_ptr + BEFORE * seqlen + row, begin, mask=live)
        tl.store(sizes_ptr + rank, size, mask=live)
        tl.store(starts_ptr + rank, begin, mask=live)


@triton.jit
def _list_members(slots_ptr, members_ptr, ints_ptr, seqlen, ROWS: tl.constexpr):
    """Store the final slot of every token, and the tokens sorted by slot."""
    for start in range(0, seqlen, ROWS):
        token = start + tl.arange(0, ROWS)
        live = token < seqlen
        slot = tl.load(slots_ptr + token, mask=live, other=0)
        position = tl.load(ints_ptr + POSITION * seqlen + token, mask=live, other=0)
        position += tl.load(ints_ptr + BEFORE * seqlen + slot, mask=live, other=0)
        tl.store(members_ptr + position, token, mask=live)
        place = tl.load(ints_ptr + TARGET * seqlen + slot, mask=live, other=0)
        tl.store(slots_ptr + token, place, mask=live)


def _config(block_a, block_b, warps, maxnreg=None):
    blocks = {"BLOCK_A": block_a, "BLOCK_B": block_b}
    return triton.Config(blocks, num_warps=warps, num_stages=1, maxnreg=maxnreg)


# BLOCK_A x BLOCK_B: the tile of cosines. With at most 128 registers two programs of 8 warps fit on
# a multiprocessor and hide each other's latency, which dominates a round. Where 128 registers
# spill, two programs of 4 warps do
CONFIGS = {
    "default": [_config(128, 32, 8, maxnreg=128), _config(128, 64, 8), _config(64, 64, 4)],
    "sm_80": [_config(64, 64, 4), _config(128, 64, 8)],
    "sm_120": [_config(64, 64, 4), _config(128, 64, 8)],
    "gfx942": [_config(128, 64, 8), _config(64, 64, 4), _config(128, 32, 4)],
}


# Not tuned when FRESH is false: the launch overwrites its scratch, so timing it repeatedly would
# corrupt the result.
@tuned(CONFIGS, key=["WIDTH"], repeatable="FRESH")
@triton.jit(do_not_specialize=["batch", "seqlen", "num_tokens", "count", "old", "scratch_rows"])
def match_kernel(
    x_ptr, slots_ptr, sizes_ptr, starts_ptr, members_ptr,
    rows_ptr, ints_ptr, floats_ptr, weights_ptr,
    batch, seqlen, num_tokens, count, old, scratch_rows,
    x_batch: tl.int64, x_token: tl.int64, x_channel,
    NUM_HEADS: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    WIDTH: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, FRESH: tl.constexpr,
    ORDER: tl.constexpr, ACC: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    # one program owns one scratch, and one group of tokens after the other; it starts from x
    # (FRESH) or from `count` rows in half `old` of the scratch
    program = tl.program_id(0).to(tl.int64)
    rows_ptr += program * scratch_rows * (2 * WIDTH)
    ints_ptr += program * seqlen * INTS
    floats_ptr += program * seqlen * FLOATS
    weights_ptr += program * seqlen * WEIGHTS
    group = program
    while group < batch:
        slots = slots_ptr + group * seqlen
        if FRESH:
            read_metric(
                x_ptr + group * x_batch, slots, rows_ptr, ints_ptr, floats_ptr, weights_ptr, seqlen,
                0, 1, x_token, x_channel, NUM_HEADS, D, WIDTH, LANES, ROWS, ACC,
            )  # fmt: skip
            tl.debug_barrier()
        left = count
        here = old
        while left > num_tokens:
            merged = tl.minimum(left - num_tokens, left // 2)
            find_partners(
                rows_ptr, ints_ptr, floats_ptr, seqlen, here, left, 0, 1,
                MAIN, TAIL, BLOCK_A, BLOCK_B,
            )  # fmt: skip
            tl.debug_barrier()
            choose_targets(ints_ptr, floats_ptr, seqlen, left, merged, 0, 1, COUNT_ROWS, COUNT_COLS)
            tl.debug_barrier()
            link_members(ints_ptr, seqlen, left, 0, 1, COUNT_ROWS, COUNT_COLS)
            tl.debug_barrier()
            left -= merged
            merge_members(
                rows_ptr, ints_ptr, floats_ptr, weights_ptr, seqlen, here, seqlen - here, left,
                0, 1, WIDTH, LANES, ROWS,
            )  # fmt: skip
            here = seqlen - here
            tl.debug_barrier()
            follow_tokens(slots, ints_ptr, seqlen, 0, 1, TOKENS)
            tl.debug_barrier()
        _rank_slots(
            sizes_ptr + group * num_tokens, starts_ptr + group * num_tokens, ints_ptr, seqlen,
            here, left, ORDER, 32, 32,
        )  # fmt: skip
        tl.debug_barrier()
        _list_members(slots, members_ptr + group * seqlen, ints_ptr, seqlen, TOKENS)
        tl.debug_barrier()
        group += tl.num_programs(0)
