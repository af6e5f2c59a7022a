"""Device functions of gated cross-attention: which rows a program owns, the gate.

A row is one query head of one token. The GROUP query heads that share a key head are packed as
rows, the heads of a token next to each other, so that one load of a tile of keys serves them all.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import load_tile

# arguments that vary with the number of tokens: not specialised, so new lengths do not recompile
ANY_LENGTH = ["n", "m", "sequences", "all_rows"]


@triton.jit
def locate(
    tile, cu_ptr, other_ptr, sequences, length, other, PER: tl.constexpr, SIZE: tl.constexpr,
    SEQS: tl.constexpr,
):  # fmt: skip
    """Where a tile of SIZE indices lies (PER of them belong to one token): its batch row; its first
    index within its sequence; first and end token of that sequence; first and end token of the
    matching sequence on the other side (the keys for rows, the rows for keys).

    cu_ptr and other_ptr hold the offsets of packed sequences; None: each batch row is a sequence.
    A tile beyond the last sequence gets a sequence without tokens.
    """
    if cu_ptr is None:
        tiles = tl.cdiv(length * PER, SIZE)
        batch = tile // tiles
        index = tile % tiles * SIZE
        start, stop, first, last = 0, length, 0, other
    else:
        s = tl.arange(0, SEQS)
        live = s < sequences
        begin = tl.load(cu_ptr + s, mask=live, other=0)
        tokens = (tl.load(cu_ptr + s + 1, mask=live, other=0) - begin).to(tl.int32)
        ends = tl.cumsum(tl.cdiv(tokens * PER, SIZE), 0)
        mine = tl.sum((live & (ends <= tile)).to(tl.int32), 0)
        batch = tile * 0
        index = (tile - tl.max(tl.where(s < mine, ends, 0), 0)) * SIZE
        there = mine < sequences
        start = tl.load(cu_ptr + mine, mask=there, other=0).to(tl.int32)
        stop = tl.load(cu_ptr + mine + 1, mask=there, other=0).to(tl.int32)
        first = tl.load(other_ptr + mine, mask=there, other=0).to(tl.int32)
        last = tl.load(other_ptr + mine + 1, mask=there, other=0).to(tl.int32)
        # offsets on a device are not checked: clamp them, so that nothing beyond is read
        stop, last = tl.minimum(stop, length), tl.minimum(last, other)
    return batch.to(tl.int64), index, start, stop, first, last


@triton.jit
def keys_of_split(split, splits, first, last, STEP: tl.constexpr):
    """Begin and end of the keys that a split reads, of those from first to last: whole steps."""
    each = tl.cdiv(tl.cdiv(last - first, splits), STEP) * STEP
    begin = first + split * each
    return begin, tl.minimum(begin + each, last)


@triton.jit
def token_and_head(row, kv_head, start, GROUP: tl.constexpr):
    """Token and head of packed rows, counted from the first token of their sequence; int64."""
    token = start + row // GROUP
    head = kv_head * GROUP + row % GROUP
    return token.to(tl.int64), head.to(tl.int64)


@triton.jit
def rows_and_keys(
    q_ptr, k_ptr, v_ptr, cu_q_ptr, cu_k_ptr, n, m, sequences,
    q_batch, q_token, q_head, q_channel, k_batch, k_head, v_batch, v_head,
    GROUP: tl.constexpr, HEADDIM: tl.constexpr, D: tl.constexpr, SEQS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """What a program (tile of rows, key head, split of the keys) owns: q of its rows, which of them
    exist, their indices among all rows; k_ptr and v_ptr of its batch row and head; begin and end of
    its keys."""
    kv_head = tl.program_id(1).to(tl.int64)
    batch, row, start, stop, first, last = locate(
        tl.program_id(0), cu_q_ptr, cu_k_ptr, sequences, n, m, GROUP, ROWS, SEQS
    )
    token, head = token_and_head(row + tl.arange(0, ROWS), kv_head, start, GROUP)
    live = token < stop
    q_at = batch * q_batch + token * q_token + head * q_head
    q = load_tile(q_ptr, q_at, live, q_channel, HEADDIM, D)
    at = (batch * n + token) * (tl.num_programs(1) * GROUP) + head
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    begin, end = keys_of_split(tl.program_id(2), tl.num_programs(2), first, last, KEYS)
    return q, live, at, k_ptr, v_ptr, begin, end


@triton.jit
def load_norm(norm_ptr, at, all_rows, live):
    """What turns a row's logits into softmax weights: their maximum, and 1 / (sum of powers)."""
    top = tl.load(norm_ptr + at, mask=live, other=0.0)
    return top, tl.load(norm_ptr + all_rows + at, mask=live, other=0.0)


@triton.jit
def gate_of(alpha_ptr, ACC: tl.constexpr):
    """tanh(alpha), accurate for small alpha: expm1(x) = (exp(x) - 1) x / log(exp(x))."""
    alpha = tl.load(alpha_ptr).to(ACC)
    size = tl.abs(alpha)
    # beyond 20, tanh is 1 in float64 too; a comparison keeps NaN, a minimum would drop it
    x = -2.0 * tl.where(size > 20.0, 20.0, size)
    u = tl.exp(x)
    less = tl.where(u == 1.0, x, (u - 1.0) * (x / tl.where(u == 1.0, 1.0, tl.log(u))))
    return tl.where(alpha < 0, less, -less) / (2.0 + less)


@triton.jit
def gated(text, gate, update):
    """text + gate * update; exactly text, bit for bit, where either factor is 0."""
    return tl.where(update == 0.0, text, tl.where(gate == 0.0, text, text + gate * update))
