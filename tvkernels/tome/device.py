"""Device functions of token merging: the five phases of a round, and what they keep in scratch.

After the metric is read, a token is a row. Its *direction* is the metric scaled until its largest
entry is 2^22 and rounded to integers; its *weight* is the metric's largest entry. Weight times
direction is the sum of the metrics that were merged into the row; a round needs nothing else.

Integers make ties exact. A sum of equal metrics has the same direction, to the last bit, and the
dot product of two directions is summed without rounding. So equal tokens score equal at every
position, in every order of summation, on every machine. 22 bits keep more of a cosine than float32
does. A direction is stored as two float16, high + low / 2^12 with |high| <= 2^10 and |low| <= 2^11,
which tensor cores multiply as they are. high x high stays within 24 bits; only flat metrics of more
than 16 entries exceed them, and there it rounds as float32 does.

Rows go from one half of the scratch to the other, so no phase writes what another thread of the
same phase reads; slots and positions are updated in place, each element by one thread. There are no
atomics, and every sum has one order, so results repeat bit for bit.
"""

import triton
import triton.language as tl

# the largest entry of a direction, and how it is cut into a high and a low part
PEAK = tl.constexpr(2.0**22)
WHOLE_PEAK = tl.constexpr(2**22)
LOW_BITS = tl.constexpr(12)
HALF_LOW = tl.constexpr(2**11)
HIGH_PEAK = tl.constexpr(2.0**10)
LOW_UNIT = tl.constexpr(2.0**-12)
# a smaller metric counts as zero; PEAK / TINY is still a finite float64
TINY = tl.constexpr(1e-290)
# the cosine of equal directions is 1, up to five roundings of float32: a cosine above this is 1
EQUAL = tl.constexpr(1 - 2.0**-21)
# no next member; no row has this index
NONE = tl.constexpr(2**31 - 1)

# scratch of each token. INTS int32 in the order of these names; SIZE takes two, one for each half
POSITION, TARGET, NEXT, FIRST, BEFORE, PARTNER, SIZE = (tl.constexpr(i) for i in range(7))
INTS = tl.constexpr(8)
# FLOATS float32; SCALE takes two. WEIGHTS float64
BEST, SCALE = (tl.constexpr(i) for i in range(2))
FLOATS = tl.constexpr(3)
WEIGHTS = tl.constexpr(2)

# tiles of comparisons; tokens that a program moves at once
COUNT_ROWS, COUNT_COLS = tl.constexpr(128), tl.constexpr(32)
TOKENS = tl.constexpr(256)


@triton.jit
def put_rows(
    total, row, live, lanes, rows_ptr, floats_ptr, weights_ptr, seqlen, WIDTH: tl.constexpr
):
    """Store direction, scale and weight of each metric sum, (ROWS, lanes) float64, at row `row`."""
    total = tl.where(tl.abs(total) < float("inf"), total, 0.0)
    peak = tl.maximum(tl.max(tl.abs(total), 1), TINY)
    # PEAK makes the number positive, so that to(int32) rounds down
    total = total * (1.0 / peak * PEAK)[:, None] + PEAK
    whole = (total + 0.5).to(tl.int32) - WHOLE_PEAK
    high = (whole + HALF_LOW) >> LOW_BITS
    low = (whole - (high << LOW_BITS)).to(tl.float32) * LOW_UNIT
    at = rows_ptr + (row.to(tl.int64) * (2 * WIDTH))[:, None] + lanes[None, :]
    mask = live[:, None] & (lanes < WIDTH)[None, :]
    tl.store(at, high.to(tl.float16), mask=mask)
    tl.store(at + WIDTH, low.to(tl.float16), mask=mask)
    # a zero vector has dot products of 0 with any scale; 1 avoids the division by 0
    square = tl.maximum(tl.sum(whole.to(tl.float64) * whole, 1), 1.0)
    scale = (1.0 / (tl.sqrt(square) * LOW_UNIT)).to(tl.float32)
    tl.store(floats_ptr + SCALE * seqlen + row, scale, mask=live)
    tl.store(weights_ptr + row, peak / HIGH_PEAK, mask=live)


@triton.jit
def read_metric(
    x_ptr, slots_ptr, rows_ptr, ints_ptr, floats_ptr, weights_ptr, seqlen, part, parts,
    x_token, x_channel,
    NUM_HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
    ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Store the metric of every token of x as a row; each token begins as a slot of its own."""
    # unroll the loop as far as registers allow: one load in flight would leave memory idle
    AT_ONCE: tl.constexpr = 64 // x_ptr.dtype.element_ty.primitive_bitwidth
    lanes = tl.arange(0, LANES)
    for start in range(part * ROWS, seqlen, parts * ROWS):
        token = start + tl.arange(0, ROWS)
        live = token < seqlen
        at = x_ptr + (token.to(tl.int64) * x_token)[:, None]
        mask = live[:, None] & (lanes < D)[None, :]
        total = tl.zeros((ROWS, LANES), ACC)
        for head in tl.range(0, NUM_HEADS, loop_unroll_factor=AT_ONCE):
            column = (head * D + lanes).to(tl.int64) * x_channel
            total += tl.load(at + column[None, :], mask=mask, other=0.0).to(ACC)
        put_rows(
            total.to(tl.float64), token, live, lanes, rows_ptr, floats_ptr, weights_ptr, seqlen,
            WIDTH,
        )  # fmt: skip
        tl.store(slots_ptr + token, token, mask=live)
        tl.store(ints_ptr + POSITION * seqlen + token, token * 0, mask=live)
        tl.store(ints_ptr + SIZE * seqlen + token, token * 0 + 1, mask=live)


@triton.jit
def _halves(row_ptr, live, WIDTH: tl.constexpr, SIZE_K: tl.constexpr):
    """High and low parts of SIZE_K entries of each row."""
    at = row_ptr[:, None] + tl.arange(0, SIZE_K)[None, :]
    high = tl.load(at, mask=live[:, None], other=0.0)
    return high, tl.load(at + WIDTH, mask=live[:, None], other=0.0)


@triton.jit
def _products(high, rest, a_high, a_low, b_ptr, in_b, WIDTH: tl.constexpr, SIZE_K: tl.constexpr):
    """Add the products of SIZE_K entries: high x high to `high`, the others to `rest`."""
    b_high, b_low = _halves(b_ptr, in_b, WIDTH, SIZE_K)
    b_high, b_low = tl.trans(b_high), tl.trans(b_low)
    high = tl.dot(a_high, b_high, high)
    rest = tl.dot(a_low, b_low, rest)
    rest = tl.dot(a_high, b_low, rest)
    rest = tl.dot(a_low, b_high, rest)
    return high, rest


@triton.jit
def find_partners(
    rows_ptr, ints_ptr, floats_ptr, seqlen, old, count, part, parts,
    MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Store each even row's highest cosine to an odd row, and the first odd row that has it."""
    WIDTH: tl.constexpr = MAIN + TAIL
    even, odd = (count + 1) // 2, count // 2
    scales = floats_ptr + SCALE * seqlen + old
    for start in range(part * BLOCK_A, even, parts * BLOCK_A):
        i = start + tl.arange(0, BLOCK_A)
        in_a = i < even
        a_ptr = rows_ptr + (old + 2 * i).to(tl.int64) * (2 * WIDTH)
        a_scale = tl.load(scales + 2 * i, mask=in_a, other=0.0)
        # a narrow metric: load the even rows once, before the loop over the odd ones
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
def choose_targets(
    ints_ptr, floats_ptr, seqlen, count, merged, part, parts, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Store the new row of each row, and the first old row of each new one.

    The `merged` best matched even rows move to their partner's new row. The other even rows stay,
    best matched first, followed by the odd rows.
    """
    even, odd = (count + 1) // 2, count // 2
    kept = even - merged
    target_ptr, first_ptr = ints_ptr + TARGET * seqlen, ints_ptr + FIRST * seqlen
    best_ptr = floats_ptr + BEST * seqlen
    # if every even row is merged this round, ranks are not needed: skip the O(n^2) ranking
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
def link_members(ints_ptr, seqlen, count, part, parts, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Store, for each old row, the next member of its new row: after an odd row its even ones."""
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
def merge_members(
    rows_ptr, ints_ptr, floats_ptr, weights_ptr, seqlen, old, new, count, part, parts,
    WIDTH: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Store the `count` new rows: each is the sum of its members, added one after the other."""
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
        put_rows(total, new + row, live, lanes, rows_ptr, floats_ptr, weights_ptr, seqlen, WIDTH)
        tl.store(ints_ptr + SIZE * seqlen + new + row, size, mask=live)


@triton.jit
def follow_tokens(slots_ptr, ints_ptr, seqlen, part, parts, ROWS: tl.constexpr):
    """Move every token with its row: update its slot and its position in the slot."""
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
