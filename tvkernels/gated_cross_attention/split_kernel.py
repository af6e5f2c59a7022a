"""The attention of gated cross-attention: one split of the keys per program, then their sum.

A program keeps the running maximum, sum and product with v of its rows over its keys (online
softmax, float32, base 2) and stores all three. The second kernel adds up the splits in their order
and stores each row's maximum and inverse sum for the backward; one float32 logarithm of both would
lose digits where logits are large.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import LOG2_E, dot, load_tile, loaded, owned, store_tile, waited
from tvkernels.core.tune import tile_configs, tuned
from tvkernels.gated_cross_attention.device import (
    ANY_LENGTH,
    gate_of,
    gated,
    rows_and_keys,
)

# a finite float32 below every logit that a row has
LEAST = tl.constexpr(-3.0e38)
# KiB of the tile of rows and of a tile of keys, warps, stages. On sm_90 a 32 KiB tile of keys
# spills in the loop unless Triton knows that the number of keys is a multiple of 16
CONFIGS = tile_configs(
    {
        "sm_80": [(16, 16, 4, 2), (32, 16, 8, 2)],
        "sm_90": [(16, 16, 4, 2), (32, 16, 8, 3)],
        "sm_120": [(16, 16, 4, 2), (32, 16, 8, 1)],
        "gfx942": [(16, 16, 4, 1), (32, 16, 8, 1)],
        "default": [(16, 16, 4, 2), (32, 32, 8, 2), (32, 16, 8, 3)],
    }
)


@tuned(CONFIGS, key=["D", "least"])
@triton.jit(do_not_specialize=ANY_LENGTH)
def split_kernel(
    q_ptr, k_ptr, v_ptr, cu_q_ptr, cu_k_ptr, part_ptr, top_ptr, total_ptr,
    n, m, sequences, all_rows, least,
    q_batch, q_token, q_head, q_channel, k_batch, k_token, k_head, k_channel,
    v_batch, v_token, v_head, v_channel,
    SCALE: tl.constexpr, GROUP: tl.constexpr, HEADDIM: tl.constexpr, D: tl.constexpr,
    SEQS: tl.constexpr, ACC: tl.constexpr,
    OWN: tl.constexpr, STEP: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns a tile of packed rows of one key head and sequence, and one split of its
    # keys. The tile is the fastest axis: programs that read the same keys run together
    ITEM: tl.constexpr = k_ptr.dtype.element_ty.primitive_bitwidth // 8
    ROWS: tl.constexpr = owned(OWN, D, ITEM)
    KEYS: tl.constexpr = loaded(STEP, D, ITEM)
    q, live, at, k_ptr, v_ptr, begin, end = rows_and_keys(
        q_ptr, k_ptr, v_ptr, cu_q_ptr, cu_k_ptr, n, m, sequences,
        q_batch, q_token, q_head, q_channel, k_batch, k_head, v_batch, v_head,
        GROUP, HEADDIM, D, SEQS, ROWS, KEYS,
    )  # fmt: skip
    top = tl.full((ROWS,), float("-inf"), ACC)
    total = tl.zeros((ROWS,), ACC)
    read = tl.zeros((ROWS, D), ACC)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        within = key < end
        key = key.to(tl.int64)
        k = load_tile(k_ptr, key * k_token, within, k_channel, HEADDIM, D)
        nothing = tl.zeros((ROWS, KEYS), ACC)
        logits = dot(q, tl.trans(k), nothing, DOT_PRECISION) * (SCALE * LOG2_E)
        logits = tl.where(within[None, :], logits, float("-inf"))
        # While every logit is -inf the maximum is LEAST: -inf - -inf would be NaN. A row without
        # keys keeps -inf
        higher = tl.maximum(tl.maximum(top, tl.max(logits, 1)), LEAST)
        weight = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(top - higher)
        top = higher
        total = total * fade + tl.sum(weight, 1)
        v = load_tile(v_ptr, key * v_token, within, v_channel, HEADDIM, D)
        read = waited(dot(weight.to(v.dtype), v, read * fade[:, None], DOT_PRECISION))
    out = tl.program_id(2).to(tl.int64) * all_rows + at
    store_tile(part_ptr, out * HEADDIM, live, read, HEADDIM, D)
    tl.store(top_ptr + out, top, mask=live)
    tl.store(total_ptr + out, total, mask=live)


@triton.jit(do_not_specialize=["rows", "splits"])
def combine_kernel(
    part_ptr, top_ptr, total_ptr, attended_ptr, norm_ptr, text_ptr, alpha_ptr, out_ptr,
    rows: tl.int64, splits, heads, text_row, text_column,
    HEADDIM: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program owns ROWS rows (token, head). With text there is no projection: what was read is
    # itself the update
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    top = tl.full((ROWS,), float("-inf"), ACC)
    total = tl.zeros((ROWS,), ACC)
    read = tl.zeros((ROWS, D), ACC)
    at = row
    for _ in range(splits):
        split_top = tl.load(top_ptr + at, mask=live, other=float("-inf"))
        higher = tl.maximum(top, split_top)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight, fade = tl.exp2(split_top - base), tl.exp2(top - base)
        top = higher
        total = total * fade + tl.load(total_ptr + at, mask=live, other=0.0) * weight
        part = load_tile(part_ptr, at * HEADDIM, live, 1, HEADDIM, D)
        read = read * fade[:, None] + part * weight[:, None]
        at += rows
    # a row without keys reads 0; one whose logits are all -inf has a total of 0 too, and reads NaN
    share = 1.0 / tl.where(top == float("-inf"), 1.0, total)
    read *= share[:, None]
    store_tile(attended_ptr, row * HEADDIM, live, read, HEADDIM, D)
    tl.store(norm_ptr + row, top, mask=live)
    tl.store(norm_ptr + rows + row, share, mask=live)
    if text_ptr is not None:
        at = row // heads * text_row + row % heads * (HEADDIM * text_column)
        text = load_tile(text_ptr, at, live, text_column, HEADDIM, D).to(ACC)
        new = gated(text, gate_of(alpha_ptr, ACC), read)
        store_tile(out_ptr, row * HEADDIM, live, new, HEADDIM, D)
