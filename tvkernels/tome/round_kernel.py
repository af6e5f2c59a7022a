"""Triton kernel of the first rounds of a few large groups: one launch per phase.

A group of thousands of tokens keeps one program busy for milliseconds, and with fewer groups than
programs the rest of the GPU would idle. Here all programs work on each phase of a round
(device.py), and the end of a launch is the barrier between phases. match_kernel.py does the
remaining rounds.
"""

import triton
import triton.language as tl

from tvkernels.tome.device import (
    COUNT_COLS,
    COUNT_ROWS,
    FLOATS,
    INTS,
    TOKENS,
    WEIGHTS,
    choose_targets,
    find_partners,
    follow_tokens,
    link_members,
    merge_members,
    read_metric,
)

METRIC, PARTNERS, TARGETS, MEMBERS, MERGE, FOLLOW = (tl.constexpr(i) for i in range(6))
# sides of the tile of cosines, for four warps
BLOCK = 64


@triton.jit(do_not_specialize=["seqlen", "count", "merged", "old", "parts", "scratch_rows"])
def round_kernel(
    x_ptr, slots_ptr, rows_ptr, ints_ptr, floats_ptr, weights_ptr,
    seqlen, count, merged, old, parts, scratch_rows,
    x_batch: tl.int64, x_token: tl.int64, x_channel,
    PHASE: tl.constexpr, NUM_HEADS: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr,
    TAIL: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr,
    ACC: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    # one program owns one of `parts` shares of one phase of one group's round
    part = tl.program_id(0) % parts
    group = (tl.program_id(0) // parts).to(tl.int64)
    slots_ptr += group * seqlen
    rows_ptr += group * scratch_rows * (2 * WIDTH)
    ints_ptr += group * seqlen * INTS
    floats_ptr += group * seqlen * FLOATS
    weights_ptr += group * seqlen * WEIGHTS
    if PHASE == METRIC:
        read_metric(
            x_ptr + group * x_batch, slots_ptr, rows_ptr, ints_ptr, floats_ptr, weights_ptr, seqlen,
            part, parts, x_token, x_channel, NUM_HEADS, D, WIDTH, LANES, ROWS, ACC,
        )  # fmt: skip
    elif PHASE == PARTNERS:
        find_partners(
            rows_ptr, ints_ptr, floats_ptr, seqlen, old, count, part, parts, MAIN, TAIL, SIDE, SIDE
        )
    elif PHASE == TARGETS:
        choose_targets(
            ints_ptr, floats_ptr, seqlen, count, merged, part, parts, COUNT_ROWS, COUNT_COLS
        )
    elif PHASE == MEMBERS:
        link_members(ints_ptr, seqlen, count, part, parts, COUNT_ROWS, COUNT_COLS)
    elif PHASE == MERGE:
        merge_members(
            rows_ptr, ints_ptr, floats_ptr, weights_ptr, seqlen, old, seqlen - old, count - merged,
            part, parts, WIDTH, LANES, ROWS,
        )  # fmt: skip
    else:
        follow_tokens(slots_ptr, ints_ptr, seqlen, part, parts, TOKENS)


def long_rounds(x, slots, scratch, num_tokens, most, scratch_rows, shape):
    """Read the metric, and run rounds while more than `most` rows are left.

    Returns the number of rows left, and the half of the scratch that holds them.
    """
    batch, seqlen, _ = x.shape
    count, old = seqlen, 0

    def run(phase, merged, items, block):
        parts = triton.cdiv(items, block)
        round_kernel[(parts * batch,)](
            x, slots, *scratch, seqlen, count, merged, old, parts, scratch_rows, *x.stride(),
            PHASE=phase.value, SIDE=BLOCK, num_warps=4, num_stages=1, **shape,
        )  # fmt: skip

    run(METRIC, 0, seqlen, shape["ROWS"])
    while count > max(most, num_tokens):
        merged = min(count - num_tokens, count // 2)
        even = (count + 1) // 2
        run(PARTNERS, merged, even, BLOCK)
        run(TARGETS, merged, even, COUNT_ROWS.value)
        run(MEMBERS, merged, count, COUNT_ROWS.value)
        run(MERGE, merged, count - merged, shape["ROWS"])
        run(FOLLOW, merged, seqlen, TOKENS.value)
        count, old = count - merged, seqlen - old
    return count, old
