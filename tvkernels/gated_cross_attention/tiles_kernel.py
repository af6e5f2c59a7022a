"""What the kernels of gated cross-attention share: whose rows a program owns, tiles, the gate.

Rows: the GROUP query heads that share a key head, of all tokens of a sequence, the heads of a token
beside each other. So a tile of keys is read once for all of them, and never repeated.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# what more text or more keys change is no reason to compile anew
ANY_LENGTH = ["n", "m", "sequences", "all_rows"]


def configs(by_target):
    """Configurations by target. OWN and STEP: bytes of the tile that a program owns, and of one
    that its loop takes. DOT: how float32 is multiplied, on AMD by its own instructions, on NVIDIA
    as three products of TF32."""
    return {
        target: [
            triton.Config(
                {"OWN": own << 10, "STEP": step << 10, "DOT": _dot_of(target)},
                num_warps=warps,
                num_stages=stages,
            )
            for own, step, warps, stages in forms
        ]
        for target, forms in by_target.items()
    }


def _dot_of(target):
    return "ieee" if target == "gfx942" else "tf32x3"


@triton.constexpr_function
def owned(size, D, itemsize):
    """Rows or keys of a program's own tile of `size` bytes; of 16 bits what a warp group takes."""
    return min(128, max(128 // itemsize, size // (D * itemsize)))


@triton.constexpr_function
def taken(size, D, itemsize):
    """Rows or keys that a loop takes at once."""
    return min(128, max(16, size // (D * itemsize)))


@triton.jit
def place(
    tile, cu_ptr, other_ptr, sequences, length, other, PER: tl.constexpr, SIZE: tl.constexpr,
    SEQS: tl.constexpr,
):  # fmt: skip
    """Where a tile of SIZE indices lies, PER of them a token: its row of the batch; its first index
    within its sequence; that sequence's first token and the one behind its last; the same of the
    tokens at the other side.

    cu_ptr and other_ptr say where packed sequences begin; None: each row of the batch is one. A
    tile that is too many has a sequence without tokens.
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
        # offsets on a device are not checked
        stop, last = tl.minimum(stop, length), tl.minimum(last, other)
    return batch.to(tl.int64), index, start, stop, first, last


@triton.jit
def keys_of_split(split, splits, first, last, STEP: tl.constexpr):
    """The part of the keys from first to last that a split takes: whole steps."""
    each = tl.cdiv(tl.cdiv(last - first, splits), STEP) * STEP
    begin = first + split * each
    return begin, tl.minimum(begin + each, last)


@triton.jit
def token_and_head(row, kv_head, start, GROUP: tl.constexpr):
    """Of packed rows, counted from the first token of their sequence; int64."""
    token = start + row // GROUP
    head = kv_head * GROUP + row % GROUP
    return token.to(tl.int64), head.to(tl.int64)


@triton.jit
def load_tile(ptr, at, live, stride, HEADDIM: tl.constexpr, D: tl.constexpr):
    """(rows, D): the heads that begin at the offsets `at`, 0 where not live and beyond HEADDIM."""
    column = tl.arange(0, D)
    mask = live[:, None]
    if HEADDIM != D:
        mask = mask & (column < HEADDIM)[None, :]
    return tl.load(ptr + (at[:, None] + (column.to(tl.int64) * stride)[None, :]), mask, other=0.0)


@triton.jit
def store_tile(ptr, at, live, value, HEADDIM: tl.constexpr, D: tl.constexpr):
    """The heads that begin at the offsets `at`, whose columns lie beside each other."""
    column = tl.arange(0, D)
    mask = live[:, None]
    if HEADDIM != D:
        mask = mask & (column < HEADDIM)[None, :]
    tl.store(ptr + (at[:, None] + column[None, :]), value.to(ptr.dtype.element_ty), mask)


@triton.jit
def rows_and_keys(
    q_ptr, k_ptr, v_ptr, cu_q_ptr, cu_k_ptr, n, m, sequences,
    q_batch, q_token, q_head, q_column, k_batch, k_head, v_batch, v_head,
    GROUP: tl.constexpr, HEADDIM: tl.constexpr, D: tl.constexpr, SEQS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """What a program (tile of rows, key head, split of the keys) owns: q of its rows, which of them
    are there, their places among all rows; k and v of its head and batch, its keys' begin and end.
    """
    kv_head = tl.program_id(1).to(tl.int64)
    batch, row, start, stop, first, last = place(
        tl.program_id(0), cu_q_ptr, cu_k_ptr, sequences, n, m, GROUP, ROWS, SEQS
    )
    token, head = token_and_head(row + tl.arange(0, ROWS), kv_head, start, GROUP)
    live = token < stop
    q_at = batch * q_batch + token * q_token + head * q_head
    q = load_tile(q_ptr, q_at, live, q_column, HEADDIM, D)
    at = (batch * n + token) * (tl.num_programs(1) * GROUP) + head
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    begin, end = keys_of_split(tl.program_id(2), tl.num_programs(2), first, last, KEYS)
    return q, live, at, k_ptr, v_ptr, begin, end


@triton.jit
def load_norm(norm_ptr, at, all_rows, live):
    """By which a row's logits become weights: their maximum, the inverse of the weights' sum."""
    top = tl.load(norm_ptr + at, mask=live, other=0.0)
    return top, tl.load(norm_ptr + all_rows + at, mask=live, other=0.0)


@triton.jit
def product(a, b, total, DOT: tl.constexpr):
    return tl.dot(a, b, total, input_precision=DOT, out_dtype=total.dtype)


@triton.jit
def gate_of(alpha_ptr, ACC: tl.constexpr):
    """tanh(alpha), of small ones too: expm1(x) = (exp(x) - 1) x / log(exp(x))."""
    alpha = tl.load(alpha_ptr).to(ACC)
    size = tl.abs(alpha)
    # beyond 20, tanh is 1 in float64 too; a comparison, because a minimum would drop NaN
    x = -2.0 * tl.where(size > 20.0, 20.0, size)
    u = tl.exp(x)
    less = tl.where(u == 1.0, x, (u - 1.0) * (x / tl.where(u == 1.0, 1.0, tl.log(u))))
    return tl.where(alpha < 0, less, -less) / (2.0 + less)


@triton.jit
def gated(text, gate, update):
    """text + gate * update; where either factor is 0, the very bits of text."""
    return tl.where(update == 0.0, text, tl.where(gate == 0.0, text, text + gate * update))
