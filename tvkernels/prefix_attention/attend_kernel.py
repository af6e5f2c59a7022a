"""Prefix attention over one split of the keys per program, then the sum of the splits.

A row is one query head of one token. The GROUP query heads that share a key head are packed as
rows, the heads of a token next to each other, then the tokens of all batch rows with these keys.

A program keeps the running maximum, sum and product with v of its rows over its keys (online
softmax, float32, base 2) and stores all three.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import LOG2_E, dot, load_tile, loaded, owned, store_tile, waited
from tvkernels.core.tune import tile_configs, tuned

# a finite float32 below every logit: with -inf, a row that sees no key of a split would be NaN
LEAST = tl.constexpr(-3.0e38)
# splits that the sum takes at once
SPLITS = tl.constexpr(32)
# KiB of the tile of rows and of a tile of keys, warps, stages; 16 KiB are 64 rows of 16 bit at
# headdim 128. The key holds no number of rows: sums have one order for every batch
CONFIGS = tile_configs(
    {
        "sm_120": [(16, 16, 4, 2)],
        "gfx942": [(16, 16, 4, 1)],
        "default": [(16, 16, 4, 2), (16, 16, 4, 3), (16, 16, 8, 2)],
    }
)
# arguments that vary with the number of tokens: not specialised, so new lengths do not recompile
ANY_LENGTH = ["n", "sharing", "keys", "each", "first", "all_rows"]


@tuned(CONFIGS, key=["D"])
@triton.jit(do_not_specialize=ANY_LENGTH)
def attend_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, part_ptr, top_ptr, total_ptr,
    n, sharing, keys, each, first, all_rows,
    q_batch, q_token, q_head, q_channel, k_batch, k_token, k_head, k_channel,
    v_batch, v_token, v_head, v_channel,
    SCALE: tl.constexpr, GROUP: tl.constexpr, HEADDIM: tl.constexpr, D: tl.constexpr,
    ACC: tl.constexpr,
    OWN: tl.constexpr, STEP: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns a tile of rows of one key head, and one split of their keys. The tile is the
    # fastest axis: programs that read the same keys run together. With lengths a batch row has its
    # own keys; each of its tokens sees those up to itself
    ITEM: tl.constexpr = k_ptr.dtype.element_ty.primitive_bitwidth // 8
    ROWS: tl.constexpr = owned(OWN, D, ITEM)
    KEYS: tl.constexpr = loaded(STEP, D, ITEM)
    tokens = sharing * n
    tiles = tl.cdiv(tokens * GROUP, ROWS)
    of_keys = (tl.program_id(0) // tiles).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    token = row // GROUP
    live = token < tokens
    index = token % n
    head = kv_head * GROUP + row % GROUP
    batch = of_keys * sharing + token // n
    q_at = batch * q_batch + index.to(tl.int64) * q_token + head * q_head
    q = load_tile(q_ptr, q_at, live, q_channel, HEADDIM, D)
    k_ptr += of_keys * k_batch + kv_head * k_head
    v_ptr += of_keys * v_batch + kv_head * v_head
    begin = tl.program_id(2) * each
    end = tl.minimum(begin + each, keys)
    # the tokens that a row sees; all of a prefix
    seen = tl.full((ROWS,), 0, tl.int32) + end
    if lengths_ptr is not None:
        # lengths on a device are not checked: nothing beyond the capacity is read
        length = tl.minimum(tl.load(lengths_ptr + of_keys).to(tl.int32), keys)
        end = tl.minimum(end, length)
        seen = tl.minimum(length - n + index + 1, end)
    top = tl.full((ROWS,), LEAST, ACC)
    total = tl.zeros((ROWS,), ACC)
    read = tl.zeros((ROWS, D), ACC)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        within = key < end
        visible = key[None, :] < seen[:, None]
        key = key.to(tl.int64)
        k = load_tile(k_ptr, key * k_token, within, k_channel, HEADDIM, D)
        nothing = tl.zeros((ROWS, KEYS), ACC)
        logits = dot(q, tl.trans(k), nothing, DOT_PRECISION) * (SCALE * LOG2_E)
        logits = tl.where(visible, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        weight = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(top - higher)
        top = higher
        total = total * fade + tl.sum(weight, 1)
        v = load_tile(v_ptr, key * v_token, within, v_channel, HEADDIM, D)
        read = waited(dot(weight.to(v.dtype), v, read * fade[:, None], DOT_PRECISION))
    # nothing is stored behind a tail's length, and the sum reads nothing there
    live = token < tl.where(begin < end, tokens, 0)
    at = (batch * n + index) * (tl.num_programs(1) * GROUP) + head
    out = (first + tl.program_id(2)).to(tl.int64) * all_rows + at
    store_tile(part_ptr, out * HEADDIM, live, read, HEADDIM, D)
    tl.store(top_ptr + out, top, mask=live)
    tl.store(total_ptr + out, total, mask=live)


@triton.jit(do_not_specialize=["rows", "prefix_splits", "splits", "each", "capacity", "of_batch"])
def join_kernel(
    part_ptr, top_ptr, total_ptr, lengths_ptr, out_ptr,
    rows, prefix_splits, splits, each, capacity, of_batch,
    HEADDIM: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program owns a row (batch row, token, head) and adds up its splits
    row = tl.program_id(0)
    length = tl.minimum(tl.load(lengths_ptr + row // of_batch).to(tl.int32), capacity)
    written = tl.minimum(prefix_splits + tl.cdiv(length, each), splits)
    top = tl.full((1,), LEAST, ACC)
    total = tl.zeros((1,), ACC)
    read = tl.zeros((D,), ACC)
    for start in range(0, written, SPLITS):
        split = start + tl.arange(0, SPLITS)
        live = split < written
        at = split.to(tl.int64) * rows + row
        tops = tl.load(top_ptr + at, mask=live, other=LEAST)
        higher = tl.maximum(top, tl.max(tops, 0))
        weight = tl.where(live, tl.exp2(tops - higher), 0.0)
        fade = tl.exp2(top - higher)
        top = higher
        totals = tl.load(total_ptr + at, mask=live, other=0.0)
        total = total * fade + tl.sum(totals * weight, 0)
        part = load_tile(part_ptr, at * HEADDIM, live, 1, HEADDIM, D)
        read = read * fade + tl.sum(part * weight[:, None], 0)
    out = row.to(tl.int64) + tl.arange(0, 1)
    store_tile(out_ptr, out * HEADDIM, out >= 0, (read / total)[None, :], HEADDIM, D)
