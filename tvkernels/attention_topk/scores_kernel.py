"""Triton kernels of the scores: from query rows and keys to the attention that each token receives.

Shapes: a sequence is a batch row, or a range of packed tokens whose offsets lie on the device (cu).
Query rows are (terms, batch, nkvheads, n_rows, width). The width is headdim, or d_model where the
key projection is folded into the rows. A row has two 16 bit terms, a value and its rounding error,
where 16 bit alone would lose accuracy. Logits are base 2, (batch * nkvheads * n_rows, seqlen in
whole tiles), in float32 (float64 for float64), as are all sums.

The dot product of every token is summed in the same order wherever the token stands, so that equal
keys get bitwise equal logits, and tie.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import LOG2_E, accumulator, dot, dot_dtype, strides
from tvkernels.core.tune import tuned

# tokens of a program; it stores one maximum and one sum per query row
TILE = 128
# most query rows of a program; channels of a program of the fold
MOST_ROWS, WIDE = 64, 64
# query rows that a program averages at a time
MEAN_ROWS = 16


@triton.jit
def _sequence(cu_ptr, total):
    """First token and number of tokens of this program's sequence."""
    if cu_ptr is None:
        first, seqlen = 0, total
    else:
        # offsets on a device are not checked: clamp them, so that nothing beyond is read
        first = tl.minimum(tl.maximum(tl.load(cu_ptr).to(tl.int64), 0), total)
        seqlen = tl.minimum(tl.load(cu_ptr + 1).to(tl.int64), total) - first
    return first, seqlen


@triton.jit
def fold_kernel(
    q_ptr, w_ptr, norm_ptr, rows_ptr, n_rows, d_model,
    q_batch, q_head, q_row, q_channel, w_row, w_column, norm_channel, rows_term,
    HEADDIM: tl.constexpr, QUERIES: tl.constexpr, TERMS: tl.constexpr,
    DOT_DTYPE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # one program owns WIDE channels of QUERIES folded rows of one key head of one sequence
    blocks = tl.cdiv(n_rows, QUERIES)
    head = (tl.program_id(1) // blocks).to(tl.int64)
    heads = tl.num_programs(1) // blocks
    batch = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(1) % blocks * QUERIES + tl.arange(0, QUERIES)).to(tl.int64)[None, :]
    # channels are the rows of the product: matrix instructions take many rows, and queries are few
    col = (tl.program_id(0) * WIDE + tl.arange(0, WIDE)).to(tl.int64)[:, None]
    live, inside = row < n_rows, col < d_model
    q_ptr += batch * q_batch + head * q_head + row * q_row
    acc = tl.zeros((WIDE, QUERIES), ACC)
    for start in range(0, HEADDIM, BLOCK):
        inner = (start + tl.arange(0, BLOCK)).to(tl.int64)
        known = inner < HEADDIM
        q = tl.load(q_ptr + inner[:, None] * q_channel, mask=known[:, None] & live, other=0.0)
        w = tl.load(
            w_ptr + (head * HEADDIM + inner)[None, :] * w_row + col * w_column,
            mask=known[None, :] & inside, other=0.0,
        )  # fmt: skip
        acc = dot(w.to(DOT_DTYPE), q.to(DOT_DTYPE), acc, "ieee")
    if norm_ptr is not None:
        acc *= tl.load(norm_ptr + col * norm_channel, mask=inside, other=0.0).to(ACC)
    at = rows_ptr + ((batch * heads + head) * n_rows + row) * d_model + col
    for term in tl.static_range(TERMS):
        value = acc.to(rows_ptr.dtype.element_ty)
        tl.store(at + term * rows_term, value, mask=inside & live)
        acc -= value.to(ACC)


@triton.jit
def _store_logits(
    logits_ptr, max_ptr, sum_ptr, logits, row, known, live, tiles, tile, TILE: tl.constexpr
):
    """Store a tile (TILE, QUERIES) of logits, and each row's maximum and sum of exp2(logit - max).

    row is (1, QUERIES); known (TILE, 1) says whether a token belongs to the sequence. `tile` counts
    from the sequence's first one; a launch on its later tokens adds the tiles `before` its own.
    """
    token = tile.to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]
    tl.store(logits_ptr + row * tiles * TILE + token, logits, mask=known & live)
    logits = tl.where(known, logits, float("-inf"))
    most = tl.max(logits, 0)[None, :]
    # if all logits are -inf, subtract 0: the sum is 0, not NaN
    above = tl.exp2(logits - tl.where(most == float("-inf"), 0.0, most))
    tl.store(max_ptr + row * tiles + tile, most, mask=live)
    tl.store(sum_ptr + row * tiles + tile, tl.sum(above, 0)[None, :], mask=live)


def _configs(*block_warps_stages):
    return [
        triton.Config({"BLOCK": block}, num_warps=warps, num_stages=stages)
        for block, warps, stages in block_warps_stages
    ]


# BLOCK: channels of a step in 16 bit, fewer where they are wider. The kernel is bound by memory
LOGITS_CONFIGS = {
    "default": _configs((64, 8, 3), (64, 8, 4), (64, 4, 3)),
    "sm_120": _configs((64, 8, 2), (32, 8, 3)),
    "gfx942": _configs((32, 4, 2), (64, 4, 1)),
}


@tuned(LOGITS_CONFIGS, key=["WIDTH", "QUERIES", "TERMS", "NORM"])
@triton.jit(do_not_specialize=["total", "tiles", "before"])
def logits_kernel(
    rows_ptr, x_ptr, logits_ptr, max_ptr, sum_ptr, cu_ptr, total, tiles, before, heads, n_rows,
    factor, eps,
    rows_term, rows_batch, rows_head, rows_row, rows_channel, x_batch, x_token, x_head, x_channel,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, TERMS: tl.constexpr, NORM: tl.constexpr,
    ACC: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program owns the logits of QUERIES query rows of one key head for TILE tokens of a
    # sequence; programs that read the same tokens are neighbours
    blocks = tl.cdiv(n_rows, QUERIES)
    head = (tl.program_id(0) // blocks % heads).to(tl.int64)
    tile = tl.program_id(0) // (blocks * heads)
    batch = tl.program_id(1).to(tl.int64)
    first, seqlen = _sequence(cu_ptr, total)
    token = tile.to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]
    row = (tl.program_id(0) % blocks * QUERIES + tl.arange(0, QUERIES)).to(tl.int64)[None, :]
    known, live = token < seqlen, row < n_rows
    x_ptr += batch * x_batch + head * x_head + (first + token) * x_token
    rows_ptr += batch * rows_batch + head * rows_head + row * rows_row
    STEP: tl.constexpr = max(16, BLOCK * 16 // x_ptr.dtype.element_ty.primitive_bitwidth)
    acc = tl.zeros((TILE, QUERIES), ACC)
    squares = tl.zeros((TILE,), ACC)
    for start in range(0, WIDTH, STEP):
        col = (start + tl.arange(0, STEP)).to(tl.int64)
        inside = col < WIDTH
        x = tl.load(x_ptr + col[None, :] * x_channel, mask=known & inside[None, :], other=0.0)
        for term in tl.static_range(TERMS):
            rows = tl.load(
                rows_ptr + term * rows_term + col[:, None] * rows_channel,
                mask=inside[:, None] & live, other=0.0,
            )  # fmt: skip
            acc = dot(x, rows, acc, "ieee")
        if NORM:
            squares += tl.sum(x.to(ACC) * x.to(ACC), 1)
    if NORM:
        acc *= tl.rsqrt(squares / WIDTH + eps)[:, None]
    row += (batch * heads + head) * n_rows
    _store_logits(
        logits_ptr, max_ptr, sum_ptr, acc * factor, row, known, live, tiles, before + tile, TILE
    )


# the projection makes this a matrix product, bound by arithmetic
ROTATED_CONFIGS = {
    "default": _configs((64, 8, 3), (32, 8, 4)),
    "sm_120": _configs((32, 8, 3)),
    "gfx942": _configs((32, 8, 2)),
}


@tuned(ROTATED_CONFIGS, key=["WIDTH", "HEADDIM", "TERMS", "NORM"])
@triton.jit(do_not_specialize=["total", "tiles", "before"])
def rotated_logits_kernel(
    q_ptr, x_ptr, w_ptr, bias_ptr, cos_ptr, sin_ptr, logits_ptr, max_ptr, sum_ptr, cu_ptr, total,
    tiles, before, heads, n_rows, factor, eps,
    q_batch, q_head, q_row, q_channel, x_batch, x_token, x_channel, w_term, w_row, w_column,
    bias_channel, cos_token, cos_channel, sin_token, sin_channel,
    WIDTH: tl.constexpr, HEADDIM: tl.constexpr, HALF: tl.constexpr, TERMS: tl.constexpr,
    NORM: tl.constexpr, ACC: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program owns the keys of one head for TILE tokens, and their logits with all its query
    # rows; programs of heads that read the same tokens are neighbours
    head = (tl.program_id(0) % heads).to(tl.int64)
    tile = tl.program_id(0) // heads
    batch = tl.program_id(1).to(tl.int64)
    first, seqlen = _sequence(cu_ptr, total)
    token = tile.to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]
    known = token < seqlen
    # rope rotates a channel of a key's first half together with one of its second half
    half = tl.arange(0, HALF).to(tl.int64)[None, :]
    inner, second = half < HEADDIM // 2, HEADDIM // 2
    x_ptr += batch * x_batch + (first + token) * x_token
    w_ptr += (head * HEADDIM + half) * w_row
    STEP: tl.constexpr = max(16, BLOCK * 16 // x_ptr.dtype.element_ty.primitive_bitwidth)
    low, high = tl.zeros((TILE, HALF), ACC), tl.zeros((TILE, HALF), ACC)
    squares = tl.zeros((TILE,), ACC)
    for start in range(0, WIDTH, STEP):
        col = (start + tl.arange(0, STEP)).to(tl.int64)
        inside = col < WIDTH
        x = tl.load(x_ptr + col[None, :] * x_channel, mask=known & inside[None, :], other=0.0)
        for term in tl.static_range(TERMS):
            w = w_ptr + term * w_term + col[:, None] * w_column
            mask = inside[:, None] & inner
            upper = tl.load(w, mask=mask, other=0.0)
            lower = tl.load(w + second * w_row, mask=mask, other=0.0)
            low = dot(x, upper, low, "ieee")
            high = dot(x, lower, high, "ieee")
        if NORM:
            squares += tl.sum(x.to(ACC) * x.to(ACC), 1)
    if NORM:
        scale = tl.rsqrt(squares / WIDTH + eps)[:, None]
        low, high = low * scale, high * scale
    if bias_ptr is not None:
        # the bias is rotated with the key, so it differs from token to token
        bias = bias_ptr + (head * HEADDIM + half) * bias_channel
        low += tl.load(bias, mask=inner, other=0.0).to(ACC)
        high += tl.load(bias + second * bias_channel, mask=inner, other=0.0).to(ACC)
    cos_ptr += (first + token) * cos_token + half * cos_channel
    sin_ptr += (first + token) * sin_token + half * sin_channel
    mask = known & inner
    cos = tl.load(cos_ptr, mask=mask, other=0.0).to(ACC)
    sin = tl.load(sin_ptr, mask=mask, other=0.0).to(ACC)
    turned = low * cos - high * sin
    cos = tl.load(cos_ptr + second * cos_channel, mask=mask, other=0.0).to(ACC)
    sin = tl.load(sin_ptr + second * sin_channel, mask=mask, other=0.0).to(ACC)
    high = high * cos + low * sin
    q_ptr += batch * q_batch + head * q_head + half * q_channel
    row = tl.zeros((1, 1), tl.int64) + (batch * heads + head) * n_rows
    for _ in range(n_rows):
        upper = tl.load(q_ptr, mask=inner, other=0.0).to(ACC)
        lower = tl.load(q_ptr + second * q_channel, mask=inner, other=0.0).to(ACC)
        logits = tl.sum(turned * upper + high * lower, 1)[:, None] * factor
        _store_logits(
            logits_ptr, max_ptr, sum_ptr, logits, row, known, row >= 0, tiles, before + tile, TILE
        )
        q_ptr += q_row
        row += 1


@triton.jit(do_not_specialize=["tiles"])
def totals_kernel(max_ptr, sum_ptr, totals_ptr, tiles, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # one program owns one query row: its largest logit, and 1 / (sum of its powers)
    at = tl.program_id(0).to(tl.int64) * tiles
    most = tl.full((BLOCK,), float("-inf"), ACC)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        part = tl.load(max_ptr + at + tile, mask=tile < tiles, other=float("-inf"))
        most = tl.maximum(most, part)
    top = tl.max(most, 0)
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        live = tile < tiles
        part = tl.load(max_ptr + at + tile, mask=live, other=float("-inf"))
        powers = tl.load(sum_ptr + at + tile, mask=live, other=0.0)
        total += powers * tl.exp2(part - top)
    tl.store(totals_ptr + tl.program_id(0) * 2, top)
    tl.store(totals_ptr + tl.program_id(0) * 2 + 1, 1.0 / tl.sum(total, 0))


@triton.jit(do_not_specialize=["tiles", "start", "length"])
def mean_kernel(
    logits_ptr, totals_ptr, scores_ptr, rows, tiles, start, length,
    ACC: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # one program owns the scores of TILE tokens of a span
    batch = tl.program_id(1).to(tl.int64)
    token = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    known = token < length
    acc = tl.zeros((TILE,), ACC)
    for begin in range(0, rows, ROWS):
        row = (begin + tl.arange(0, ROWS)).to(tl.int64)
        live = row < rows
        row = batch * rows + row
        top = tl.load(totals_ptr + row * 2, mask=live, other=0.0)[:, None]
        share = tl.load(totals_ptr + row * 2 + 1, mask=live, other=0.0)[:, None]
        mask = live[:, None] & known[None, :]
        at = logits_ptr + row[:, None] * tiles * TILE + (start + token)[None, :]
        logits = tl.load(at, mask=mask, other=0.0)
        acc += tl.sum(tl.where(mask, tl.exp2(logits - top) * share, 0.0), 0)
    tl.store(scores_ptr + batch * length + token, acc / rows, mask=known)


def scores_of_keys(q, k, span, scale, cu):
    """(batch, length) scores of q (batch, [n_queries,] nheads, headdim) and k (batch, seqlen,
    nkvheads, headdim)."""
    return _scores(_grouped(q, k.shape[2])[None], [k], span, scale, cu)


def in_parts(hidden, tail):
    """The tokens of hidden and of tail, in parts of whole tiles but the last. A tile that holds
    tokens of both is a copy; so each tile holds what it would of the two put together."""
    if tail is None:
        return [hidden]
    whole = hidden.shape[1] // TILE * TILE
    last = torch.cat([hidden[:, whole:], tail], 1)
    return [part for part in (hidden[:, :whole], last) if part.shape[1]]


def scores_of_hidden(q, parts, weight, norm, eps, span, scale, cu):
    """Scores of parts (batch, seqlen, d_model), with the projection folded into the query rows."""
    hidden = parts[0]
    headdim, d_model = q.shape[-1], hidden.shape[2]
    heads = weight.shape[0] // headdim
    q = _grouped(q, heads)
    batch, _, n_rows, _ = q.shape
    terms = 2 if hidden.dtype.itemsize == 2 else 1
    rows = hidden.new_empty(terms, batch, 1, heads * n_rows, d_model)
    acc, block = accumulator(hidden.dtype), _block(n_rows)
    grid = (triton.cdiv(d_model, WIDE), heads * triton.cdiv(n_rows, block), batch)
    fold_kernel[grid](
        q, weight, norm, rows, n_rows, d_model,
        *q.stride(), *weight.stride(), *strides(norm, 1), rows.stride(0),
        HEADDIM=headdim, QUERIES=block, TERMS=terms, DOT_DTYPE=dot_dtype(q.dtype, weight.dtype),
        ACC=acc, BLOCK=_block(headdim), WIDE=WIDE, num_warps=4,
    )  # fmt: skip
    parts = [part[:, :, None] for part in parts]
    return _scores(rows, parts, span, scale, cu, None if norm is None else eps)


def scores_of_rotated(q, parts, weight, bias, norm, eps, cos, sin, span, scale, cu):
    """Scores of keys with rope: projected and rotated tile by tile, and never stored."""
    hidden = parts[0]
    headdim, (batch, _, width) = q.shape[-1], hidden.shape
    heads = weight.shape[0] // headdim
    q = _grouped(q, heads)
    weight, acc = _terms(weight, norm, hidden.dtype), accumulator(hidden.dtype)
    logits, most, sums = _workspace(parts, batch * heads * q.shape[2])
    before = 0
    for x in parts:
        total, own = x.shape[1], triton.cdiv(x.shape[1], TILE)
        rotated_logits_kernel[(own * heads, batch)](
            q, x, weight, bias, cos[before * TILE :], sin[before * TILE :], logits, most, sums, cu,
            total, most.shape[1], before, heads, q.shape[2], scale * LOG2_E.value, eps,
            *q.stride(), *x.stride(), *weight.stride(), *strides(bias, 1), *cos.stride(),
            *sin.stride(),
            WIDTH=width, HEADDIM=headdim, HALF=max(16, triton.next_power_of_2(headdim // 2)),
            TERMS=len(weight), NORM=norm is not None, ACC=acc, TILE=TILE,
        )  # fmt: skip
        before += own
    return _mean(logits, most, sums, batch, span)


def _scores(rows, parts, span, scale, cu, eps=None):
    """Scores of rows (terms, batch, nkvheads, n_rows, width) and parts (batch, seqlen, nkvheads,
    width), which are normed where `eps` is given. A part but the last has whole tiles."""
    terms, batch, heads, n_rows, width = rows.shape
    logits, most, sums = _workspace(parts, batch * heads * n_rows)
    before, block = 0, _block(n_rows)
    for x in parts:
        own = triton.cdiv(x.shape[1], TILE)
        logits_kernel[(own * heads * triton.cdiv(n_rows, block), batch)](
            rows, x, logits, most, sums, cu, x.shape[1], most.shape[1], before, heads, n_rows,
            scale * LOG2_E.value, eps or 0.0, *rows.stride(), *x.stride(),
            WIDTH=width, QUERIES=block, TERMS=terms, NORM=eps is not None,
            ACC=accumulator(x.dtype), TILE=TILE,
        )  # fmt: skip
        before += own
    return _mean(logits, most, sums, batch, span)


def _mean(logits, most, sums, batch, span):
    """Softmax over the whole sequence, then the mean over its rows, for the tokens of the span."""
    acc, (start, length) = accumulator(logits.dtype), span
    rows, tiles = most.shape
    totals = logits.new_empty(rows, 2)
    totals_kernel[(rows,)](most, sums, totals, tiles, ACC=acc, BLOCK=1024, num_warps=4)
    scores = logits.new_empty(batch, length)
    mean_kernel[(triton.cdiv(length, TILE), batch)](
        logits, totals, scores, rows // batch, tiles, start, length,
        ACC=acc, ROWS=MEAN_ROWS, TILE=TILE, num_warps=4,
    )  # fmt: skip
    return scores


def _workspace(parts, rows):
    """Logits, in whole tiles, and the maximum and sum of each row in each tile."""
    x, tiles = parts[0], sum(triton.cdiv(part.shape[1], TILE) for part in parts)
    wide = torch.promote_types(x.dtype, torch.float32)
    sizes = ((rows, tiles * TILE), (rows, tiles), (rows, tiles))
    return [torch.empty(size, dtype=wide, device=x.device) for size in sizes]


def _grouped(q, nkvheads):
    """(batch, nkvheads, n_rows, headdim): the query rows that share each key head."""
    q = q[:, None] if q.ndim == 3 else q
    return q.unflatten(2, (nkvheads, q.shape[2] // nkvheads)).transpose(1, 2).flatten(2, 3)


def _terms(weight, norm, dtype):
    """(terms, rows, d_model) of `dtype` whose sum is weight * norm: one term where it is exact."""
    if norm is None and weight.dtype == dtype:
        return weight[None]
    left = weight.to(torch.promote_types(dtype, torch.float32), copy=True)
    if norm is not None:
        left *= norm
    terms = torch.empty(
        2 if dtype.itemsize == 2 else 1, *left.shape, dtype=dtype, device=left.device
    )
    for term in terms:
        term.copy_(left)
        left -= term
    return terms


def _block(size):
    return min(MOST_ROWS, max(16, triton.next_power_of_2(size)))
