"""Triton engine of token merging, who goes where: all rounds, a group of tokens to a program.

Shapes: x (batch, seqlen, NUM_HEADS x D), read once, for the metric. After that a token is a row:
its *direction*, the metric scaled until its largest entry is 2^22 and rounded to whole numbers, and
its *weight*, the metric's largest entry. Weight times direction is the sum of the metrics of what
was merged into the row, and that is all a round needs.

Whole numbers make ties exact. A sum of equal metrics has their direction again, to the last bit,
and the product of two directions is summed without rounding, so that equal tokens score equal at
every place, in every order of summation, on every machine. 22 bits keep more than float32 does of
a cosine. A direction is stored as two float16, high + low / 2^12 with |high| <= 2^10 and
|low| <= 2^11, which tensor cores multiply as they are: high x high stays within 24 bits for all but
flat metrics of more than 16 entries, and there the rounding is that of float32.

Rows live in scratch that only this program touches (2 x 2 bytes an entry: it stays in L2). A round
is five phases; what one writes, the next reads through other threads, so a barrier ends each: it
waits for the threads of the program and orders their memory (bar.sync, s_barrier with its fences),
and plain loads see it, since no other multiprocessor writes there. No phase writes what it reads
from another thread: rows and what belongs to them go from one half of the scratch to the other, and
`assignment`, `position` are changed in place element by element. Nothing is added atomically and
every sum has one order, so results repeat.

What 729 x 1152 of 16 bit down to 16 request in sectors, counted, as multiples of x: 3.18. Of that
1.11 is the metric (a head is four and a half sectors), 1.00 the means, and 1.07 scratch: rows
written, read by the products (the even ones once) and by the merging, and what belongs to tokens
and rows. From memory come the two of x and the result; a program's rows are 350 KB and stay in L2,
and to keep them nearer would take shared memory that a phase can index.
"""

import triton
import triton.language as tl

from tvkernels.core.tune import tuned

# the largest entry of a direction; what of it a high and a low part hold
PEAK = tl.constexpr(2.0**22)
WHOLE_PEAK = tl.constexpr(2**22)
LOW_BITS = tl.constexpr(12)
HALF_LOW = tl.constexpr(2**11)
HIGH_PEAK = tl.constexpr(2.0**10)
LOW_UNIT = tl.constexpr(2.0**-12)
# below it a metric counts as zero; its reciprocal times PEAK is a float64
TINY = tl.constexpr(1e-290)
# of equal directions the cosine is 1, up to five roundings of float32: above this it counts as 1
EQUAL = tl.constexpr(1 - 2.0**-21)
# no next member; a row is never this large
NONE = tl.constexpr(2**31 - 1)

# what scratch holds for each token: ints
POSITION, TARGET, NEXT, FIRST, BEFORE, PARTNER, SIZE = (tl.constexpr(i) for i in range(7))
INTS = 8  # sizes take two
# float32
BEST, SCALE = (tl.constexpr(i) for i in range(2))
FLOATS = 3  # scales take two

# tiles of comparisons; tokens that move at once
COUNT_ROWS, COUNT_COLS = tl.constexpr(128), tl.constexpr(32)
TOKENS = tl.constexpr(256)

RAW, ASCENDING, DESCENDING = (tl.constexpr(i) for i in range(3))


@triton.jit
def _put(total, row, live, lanes, rows_ptr, floats_ptr, weights_ptr, seqlen, WIDTH: tl.constexpr):
    """Direction, scale and weight of each metric sum, (ROWS, lanes) float64, into row `row`."""
    total = tl.where(tl.abs(total) < float("inf"), total, 0.0)
    peak = tl.maximum(tl.max(tl.abs(total), 1), TINY)
    # of a number that is not negative, to(int32) is the floor
    total = total * (1.0 / peak * PEAK)[:, None] + PEAK
    whole = (total + 0.5).to(tl.int32) - WHOLE_PEAK
    high = (whole + HALF_LOW) >> LOW_BITS
    low = (whole - (high << LOW_BITS)).to(tl.float32) * LOW_UNIT
    at = rows_ptr + (row.to(tl.int64) * (2 * WIDTH))[:, None] + lanes[None, :]
    mask = live[:, None] & (lanes < WIDTH)[None, :]
    tl.store(at, high.to(tl.float16), mask=mask)
    tl.store(at + WIDTH, low.to(tl.float16), mask=mask)
    # a zero vector has products of 0, whatever its scale
    square = tl.maximum(tl.sum(whole.to(tl.float64) * whole, 1), 1.0)
    scale = (1.0 / (tl.sqrt(square) * LOW_UNIT)).to(tl.float32)
    tl.store(floats_ptr + SCALE * seqlen + row, scale, mask=live)
    tl.store(weights_ptr + row, peak / HIGH_PEAK, mask=live)


@triton.jit
def _read_metric(
    x_ptr, slots_ptr, rows_ptr, ints_ptr, floats_ptr, weights_ptr, seqlen, part, parts, x_t, x_c,
    NUM_HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
    ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The metric of the tokens of x as the first rows: each token a slot of its own."""
    # heads loaded at once, as registers allow: one alone would not keep the memory busy
    AT_ONCE: tl.constexpr = 64 // x_ptr.dtype.element_ty.primitive_bitwidth
    lanes = tl.arange(0, LANES)
    for start in range(part * ROWS, seqlen, parts * ROWS):
        token = start + tl.arange(0, ROWS)
        live = token < seqlen
        at = x_ptr + (token.to(tl.int64) * x_t)[:, None]
        mask = live[:, None] & (lanes < D)[None, :]
        total = tl.zeros((ROWS, LANES), ACC)
        for head in tl.range(0, NUM_HEADS, loop_unroll_factor=AT_ONCE):
            column = (head * D + lanes).to(tl.int64) * x_c
            total += tl.load(at + column[None, :], mask=mask, other=0.0).to(ACC)
        _put(
            total.to(tl.float64), token, live, lanes, rows_ptr, floats_ptr, weights_ptr, seqlen,
            WIDTH,
        )  # fmt: skip
        tl.store(slots_ptr + token, token, mask=live)
        tl.store(ints_ptr + POSITION * seqlen + token, token * 0, mask=live)
        tl.store(ints_ptr + SIZE * seqlen + token, token * 0 + 1, mask=live)


@triton.jit
def _halves(row_ptr, live, WIDTH: tl.constexpr, SIZE_K: tl.constexpr):
    """The high and the low parts of SIZE_K entries of each row."""
    at = row_ptr[:, None] + tl.arange(0, SIZE_K)[None, :]
    high = tl.load(at, mask=live[:, None], other=0.0)
    return high, tl.load(at + WIDTH, mask=live[:, None], other=0.0)


@triton.jit
def _products(high, rest, a_high, a_low, b_ptr, in_b, WIDTH: tl.constexpr, SIZE_K: tl.constexpr):
    """Add the products of SIZE_K entries: of the high parts, and of all others."""
    b_high, b_low = _halves(b_ptr, in_b, WIDTH, SIZE_K)
    b_high, b_low = tl.trans(b_high), tl.trans(b_low)
    high = tl.dot(a_high, b_high, high)
    rest = tl.dot(a_low, b_low, rest)
    rest = tl.dot(a_high, b_low, rest)
    rest = tl.dot(a_low, b_high, rest)
    return high, rest


@triton.jit
def _find_partners(
    rows_ptr, ints_ptr, floats_ptr, seqlen, old, count, part, parts,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Of each even row the highest cosine to an odd row, and the first odd row that has it."""
    WIDTH: tl.constexpr = MAIN + TAIL
    even, odd = (count + 1) // 2, count // 2
    scales = floats_ptr + SCALE * seqlen + old
    for start in range(part * BLOCK_A, even, parts * BLOCK_A):
        i = start + tl.arange(0, BLOCK_A)
        in_a = i < even
        a_ptr = rows_ptr + (old + 2 * i).to(tl.int64) * (2 * WIDTH)
        a_scale = tl.load(scales + 2 * i, mask=in_a, other=0.0)
        # the even rows stay on chip while the odd ones pass, where the metric is narrow enough
        if MAIN == 64:
            main_high, main_low = _halves(a_ptr, in_a, WIDTH, 64)
        if TAIL > 0:
            tail_high, tail_low = _halves(a_ptr + MAIN, in_a, WIDTH, TAIL)
        best = tl.full((BLOCK_A,), float("-inf"), tl.float32)
        partner = tl.zeros((BLOCK_A,), tl.int32)
        for other in range(0, odd, BLOCK_B):
            j = other + tl.arange(0, BLOCK_B)
            in_b = j < odd
            b_ptr = rows_ptr + (old + 2 * j + 1).to(tl.int64) * (2 * WIDTH)
            high = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
            rest = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
            if MAIN == 64:
                high, rest = _products(high, rest, main_high, main_low, b_ptr, in_b, WIDTH, 64)
            else:
                for k in range(0, MAIN, 64):
                    a_high, a_low = _halves(a_ptr + k, in_a, WIDTH, 64)
                    high, rest = _products(high, rest, a_high, a_low, b_ptr + k, in_b, WIDTH, 64)
            if TAIL > 0:
                high, rest = _products(
                    high, rest, tail_high, tail_low, b_ptr + MAIN, in_b, WIDTH, TAIL
                )
            b_scale = tl.load(scales + 2 * j + 1, mask=in_b, other=0.0)
            score = (high + rest) * (a_scale[:, None] * b_scale[None, :])
            score = tl.where(score > EQUAL, 1.0, score)
            score = tl.where(in_b[None, :], score, float("-inf"))
            top = tl.max(score, 1)
            who = tl.min(tl.where(score == top[:, None], j[None, :], NONE), 1)
            partner = tl.where(top > best, who, partner)
            best = tl.maximum(top, best)
        tl.store(floats_ptr + BEST * seqlen + i, best, mask=in_a)
        tl.store(ints_ptr + PARTNER * seqlen + i, partner, mask=in_a)


@triton.jit
def _choose_targets(
    ints_ptr, floats_ptr, seqlen, count, merged, part, parts, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Where each row goes, and which old row each new one starts with.

    The `merged` best matched even rows go to their partner's new row, the others stay, the better
    matched first; the odd rows come behind them.
    """
    even, odd = (count + 1) // 2, count // 2
    kept = even - merged
    target_ptr, first_ptr = ints_ptr + TARGET * seqlen, ints_ptr + FIRST * seqlen
    best_ptr = floats_ptr + BEST * seqlen
    # where none stays, nobody asks for the order
    ranked = tl.where(kept > 0, even, 0)
    for start in range(part * ROWS, even, parts * ROWS):
        i = start + tl.arange(0, ROWS)
        is_even, is_odd = i < even, i < odd
        best = tl.load(best_ptr + i, mask=is_even, other=0.0)
        behind = tl.zeros((ROWS, COLS), tl.int32)
        for other in range(0, ranked, COLS):
            j = other + tl.arange(0, COLS)
            rival = tl.load(best_ptr + j, mask=j < even, other=float("-inf"))
            ahead = rival[None, :] > best[:, None]
            ahead |= (rival[None, :] == best[:, None]) & (j[None, :] < i[:, None])
            behind += (ahead & (j < even)[None, :]).to(tl.int32)
        rank = tl.sum(behind, 1)
        partner = tl.load(ints_ptr + PARTNER * seqlen + i, mask=is_even, other=0)
        stays = is_even & (rank >= merged)
        tl.store(target_ptr + 2 * i, tl.where(stays, rank - merged, kept + partner), mask=is_even)
        tl.store(target_ptr + 2 * i + 1, kept + i, mask=is_odd)
        tl.store(first_ptr + rank - merged, 2 * i, mask=stays)
        tl.store(first_ptr + kept + i, 2 * i + 1, mask=is_odd)


@triton.jit
def _link_members(ints_ptr, seqlen, count, part, parts, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Of each old row the next one in its new row: behind an odd row its even ones, in order."""
    even = (count + 1) // 2
    target_ptr = ints_ptr + TARGET * seqlen
    for start in range(part * ROWS, count, parts * ROWS):
        row = start + tl.arange(0, ROWS)
        target = tl.load(target_ptr + row, mask=row < count, other=-1)
        after = tl.where(row % 2 == 1, -1, row)
        follower = tl.full((ROWS, COLS), NONE, tl.int32)
        for other in range(0, even, COLS):
            j = other + tl.arange(0, COLS)
            rival = tl.load(target_ptr + 2 * j, mask=j < even, other=-2)
            follows = (rival[None, :] == target[:, None]) & (2 * j[None, :] > after[:, None])
            follower = tl.minimum(follower, tl.where(follows, 2 * j[None, :], NONE))
        tl.store(ints_ptr + NEXT * seqlen + row, tl.min(follower, 1), mask=row < count)


@triton.jit
def _merge_members(
    rows_ptr, ints_ptr, floats_ptr, weights_ptr, seqlen, old, new, count, part, parts,
    WIDTH: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Each of the `count` new rows: the sum of its members, taken one after the other."""
    lanes = tl.arange(0, LANES)
    for start in range(part * ROWS, count, parts * ROWS):
        row = start + tl.arange(0, ROWS)
        live = row < count
        member = tl.load(ints_ptr + FIRST * seqlen + row, mask=live, other=NONE)
        total = tl.zeros((ROWS, LANES), tl.float64)
        size = tl.zeros((ROWS,), tl.int32)
        while tl.min(member, 0) < NONE:
            here = member < NONE
            at = rows_ptr + ((old + member).to(tl.int64) * (2 * WIDTH))[:, None] + lanes[None, :]
            mask = here[:, None] & (lanes < WIDTH)[None, :]
            high = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            low = tl.load(at + WIDTH, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(weights_ptr + old + member, mask=here, other=0.0)
            total += weight[:, None] * (high + low).to(tl.float64)
            tl.store(ints_ptr + BEFORE * seqlen + member, size, mask=here)
            size += tl.load(ints_ptr + SIZE * seqlen + old + member, mask=here, other=0)
            member = tl.load(ints_ptr + NEXT * seqlen + member, mask=here, other=NONE)
        _put(total, new + row, live, lanes, rows_ptr, floats_ptr, weights_ptr, seqlen, WIDTH)
        tl.store(ints_ptr + SIZE * seqlen + new + row, size, mask=live)


@triton.jit
def _follow_tokens(slots_ptr, ints_ptr, seqlen, part, parts, ROWS: tl.constexpr):
    """Move every token with its row: its slot, and how many tokens of the slot precede it."""
    for start in range(part * ROWS, seqlen, parts * ROWS):
        token = start + tl.arange(0, ROWS)
        live = token < seqlen
        slot = tl.load(slots_ptr + token, mask=live, other=0)
        position = tl.load(ints_ptr + POSITION * seqlen + token, mask=live, other=0)
        position += tl.load(ints_ptr + BEFORE * seqlen + slot, mask=live, other=0)
        tl.store(ints_ptr + POSITION * seqlen + token, position, mask=live)
        tl.store(
            slots_ptr + token,
            tl.load(ints_ptr + TARGET * seqlen + slot, mask=live, other=0),
            mask=live,
        )


@triton.jit
def _rank_slots(
    sizes_ptr, starts_ptr, ints_ptr, seqlen, old, count,
    ORDER: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The final place of each row, its size there, and where its tokens start in `members`."""
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
    """The final slot of every token, and the tokens sorted by it."""
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


# BLOCK_A x BLOCK_B: the tile of cosines. 128 registers leave room for two programs of 8 warps on a
# multiprocessor: a round is latency, and one program's hides behind the other's. Where that spills,
# two programs of 4 warps
CONFIGS = {
    "default": [_config(128, 32, 8, maxnreg=128), _config(128, 64, 8), _config(64, 64, 4)],
    "sm_80": [_config(64, 64, 4), _config(128, 64, 8)],
    "sm_120": [_config(64, 64, 4), _config(128, 64, 8)],
    "gfx942": [_config(128, 64, 8), _config(64, 64, 4), _config(128, 32, 4)],
}


# what is not FRESH goes on in a scratch that it changes
@tuned(CONFIGS, key=["WIDTH"], repeatable="FRESH")
@triton.jit(do_not_specialize=["batch", "seqlen", "num_tokens", "count", "old", "scratch_rows"])
def match_kernel(
    x_ptr, slots_ptr, sizes_ptr, starts_ptr, members_ptr,
    rows_ptr, ints_ptr, floats_ptr, weights_ptr,
    batch, seqlen, num_tokens, count, old, scratch_rows,
    x_b: tl.int64, x_t: tl.int64, x_c,
    NUM_HEADS: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    WIDTH: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, FRESH: tl.constexpr,
    ORDER: tl.constexpr, ACC: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    # one program owns a group of tokens after the other, and one scratch; it begins with `count`
    # rows in half `old` of the scratch, or (FRESH) with x
    program = tl.program_id(0).to(tl.int64)
    rows_ptr += program * scratch_rows * (2 * WIDTH)
    ints_ptr += program * seqlen * 8
    floats_ptr += program * seqlen * 3
    weights_ptr += program * seqlen * 2
    group = program
    while group < batch:
        slots = slots_ptr + group * seqlen
        if FRESH:
            _read_metric(
                x_ptr + group * x_b, slots, rows_ptr, ints_ptr, floats_ptr,
                weights_ptr, seqlen, 0, 1, x_t, x_c, NUM_HEADS, D, WIDTH, LANES, ROWS, ACC,
            )  # fmt: skip
            tl.debug_barrier()
        left = count
        here = old
        while left > num_tokens:
            merged = tl.minimum(left - num_tokens, left // 2)
            _find_partners(
                rows_ptr, ints_ptr, floats_ptr, seqlen, here, left, 0, 1,
                MAIN, TAIL, BLOCK_A, BLOCK_B,
            )  # fmt: skip
            tl.debug_barrier()
            _choose_targets(
                ints_ptr, floats_ptr, seqlen, left, merged, 0, 1, COUNT_ROWS, COUNT_COLS
            )
            tl.debug_barrier()
            _link_members(ints_ptr, seqlen, left, 0, 1, COUNT_ROWS, COUNT_COLS)
            tl.debug_barrier()
            left -= merged
            _merge_members(
                rows_ptr, ints_ptr, floats_ptr, weights_ptr, seqlen, here, seqlen - here, left,
                0, 1, WIDTH, LANES, ROWS,
            )  # fmt: skip
            here = seqlen - here
            tl.debug_barrier()
            _follow_tokens(slots, ints_ptr, seqlen, 0, 1, TOKENS)
            tl.debug_barrier()
        _rank_slots(
            sizes_ptr + group * num_tokens, starts_ptr + group * num_tokens, ints_ptr, seqlen,
            here, left, ORDER, 32, 32,
        )  # fmt: skip
        tl.debug_barrier()
        _list_members(slots, members_ptr + group * seqlen, ints_ptr, seqlen, TOKENS)
        tl.debug_barrier()
        group += tl.num_programs(0)
