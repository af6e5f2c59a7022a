"""The backward of the attention. y = dout W is the gradient of what was read, without the gate:

    P = exp2(logits - top) / total,  dP = y v^T,  dS = P (dP - delta),  delta = rowsum(y * attended)
    dq = g s dS k,  dk = g s dS^T q,  dv = g P^T y,  dalpha = (1 - g^2) sum(delta),  g = tanh(alpha)

s is the scale. P is recomputed from each row's maximum and inverse sum, once for dq and once for dk
and dv. The program that owns the keys sums over the heads of their group, so there is no race.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import LOG2_E, dot, load_tile, loaded, owned, store_tile, waited
from tvkernels.core.tune import tile_configs, tuned
from tvkernels.gated_cross_attention.device import (
    ANY_LENGTH,
    gate_of,
    load_norm,
    locate,
    rows_and_keys,
    token_and_head,
)

# KiB of the tile of rows and of a tile of keys, warps, stages
QUERY_CONFIGS = tile_configs(
    {
        "sm_120": [(16, 16, 4, 1)],
        "gfx942": [(16, 16, 4, 1)],
        "default": [(16, 16, 4, 2), (32, 16, 8, 2)],
    }
)
# KiB of the tile of keys and of a tile of rows, warps, stages
KEY_CONFIGS = tile_configs(
    {
        "sm_120": [(16, 8, 8, 1)],
        "gfx942": [(16, 16, 8, 1)],
        "default": [(16, 16, 8, 2), (32, 8, 8, 2)],
    }
)


@tuned(QUERY_CONFIGS, key=["D", "least"])
@triton.jit(do_not_specialize=ANY_LENGTH)
def query_backward_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, attended_ptr, norm_ptr, alpha_ptr, cu_q_ptr, cu_k_ptr,
    dq_ptr, delta_ptr, n, m, sequences, all_rows, least,
    q_batch, q_token, q_head, q_channel, k_batch, k_token, k_head, k_channel,
    v_batch, v_token, v_head, v_channel,
    SCALE: tl.constexpr, GROUP: tl.constexpr, HEADDIM: tl.constexpr, D: tl.constexpr,
    SEQS: tl.constexpr, ACC: tl.constexpr,
    OWN: tl.constexpr, STEP: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns what one of split_kernel owns; the first split of its rows stores their delta
    ITEM: tl.constexpr = k_ptr.dtype.element_ty.primitive_bitwidth // 8
    ROWS: tl.constexpr = owned(OWN, D, ITEM)
    KEYS: tl.constexpr = loaded(STEP, D, ITEM)
    q, live, at, k_ptr, v_ptr, begin, end = rows_and_keys(
        q_ptr, k_ptr, v_ptr, cu_q_ptr, cu_k_ptr, n, m, sequences,
        q_batch, q_token, q_head, q_channel, k_batch, k_head, v_batch, v_head,
        GROUP, HEADDIM, D, SEQS, ROWS, KEYS,
    )  # fmt: skip
    y = load_tile(y_ptr, at * HEADDIM, live, 1, HEADDIM, D)
    attended = load_tile(attended_ptr, at * HEADDIM, live, 1, HEADDIM, D)
    delta = tl.sum(y.to(ACC) * attended.to(ACC), 1)
    split = tl.program_id(2)
    if split == 0:
        tl.store(delta_ptr + at, delta, mask=live)
    top, share = load_norm(norm_ptr, at, all_rows, live)
    y = y.to(q.dtype)
    dq = tl.zeros((ROWS, D), ACC)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        within = key < end
        key = key.to(tl.int64)
        k = load_tile(k_ptr, key * k_token, within, k_channel, HEADDIM, D)
        v = load_tile(v_ptr, key * v_token, within, v_channel, HEADDIM, D)
        nothing = tl.zeros((ROWS, KEYS), ACC)
        logits = dot(q, tl.trans(k), nothing, DOT_PRECISION) * (SCALE * LOG2_E)
        weight = tl.exp2(logits - top[:, None]) * share[:, None]
        weight = tl.where(within[None, :], weight, 0.0)
        dweight = dot(y, tl.trans(v), nothing, DOT_PRECISION)
        dlogits = weight * (dweight - delta[:, None])
        dq = waited(dot(dlogits.to(k.dtype), k, dq, DOT_PRECISION))
    dq *= gate_of(alpha_ptr, ACC) * SCALE
    store_tile(dq_ptr, (split.to(tl.int64) * all_rows + at) * HEADDIM, live, dq, HEADDIM, D)


@tuned(KEY_CONFIGS, key=["D"])
@triton.jit(do_not_specialize=ANY_LENGTH)
def key_backward_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, norm_ptr, delta_ptr, alpha_ptr, cu_q_ptr, cu_k_ptr, dk_ptr, dv_ptr,
    n, m, sequences, all_rows,
    q_batch, q_token, q_head, q_channel, k_batch, k_token, k_head, k_channel,
    v_batch, v_token, v_head, v_channel,
    SCALE: tl.constexpr, GROUP: tl.constexpr, HEADDIM: tl.constexpr, D: tl.constexpr,
    SEQS: tl.constexpr, ACC: tl.constexpr,
    OWN: tl.constexpr, STEP: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns a tile of keys of one key head and sequence, and loops over all rows there
    ITEM: tl.constexpr = k_ptr.dtype.element_ty.primitive_bitwidth // 8
    KEYS: tl.constexpr = owned(OWN, D, ITEM)
    ROWS: tl.constexpr = loaded(STEP, D, ITEM)
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    batch, index, start, stop, first, last = locate(
        tl.program_id(0), cu_k_ptr, cu_q_ptr, sequences, m, n, 1, KEYS, SEQS
    )
    key = (start + index + tl.arange(0, KEYS)).to(tl.int64)
    within = key < stop
    k_at = batch * k_batch + key * k_token + kv_head.to(tl.int64) * k_head
    v_at = batch * v_batch + key * v_token + kv_head.to(tl.int64) * v_head
    k = load_tile(k_ptr, k_at, within, k_channel, HEADDIM, D)
    v = load_tile(v_ptr, v_at, within, v_channel, HEADDIM, D)
    dk, dv = tl.zeros((KEYS, D), ACC), tl.zeros((KEYS, D), ACC)
    for row in range(0, (last - first) * GROUP, ROWS):
        token, head = token_and_head(row + tl.arange(0, ROWS), kv_head, first, GROUP)
        live = token < last
        q_at = batch * q_batch + token * q_token + head * q_head
        q = load_tile(q_ptr, q_at, live, q_channel, HEADDIM, D)
        at = (batch * n + token) * (kv_heads * GROUP) + head
        y = load_tile(y_ptr, at * HEADDIM, live, 1, HEADDIM, D).to(k.dtype)
        # a row that does not exist loads a share of 0, so it adds nothing
        top, share = load_norm(norm_ptr, at, all_rows, live)
        delta = tl.load(delta_ptr + at, mask=live, other=0.0)
        nothing = tl.zeros((KEYS, ROWS), ACC)
        logits = dot(k, tl.trans(q), nothing, DOT_PRECISION) * (SCALE * LOG2_E)
        weight = tl.exp2(logits - top[None, :]) * share[None, :]
        dv = dot(weight.to(k.dtype), y, dv, DOT_PRECISION)
        dweight = dot(v, tl.trans(y), nothing, DOT_PRECISION)
        dlogits = weight * (dweight - delta[None, :])
        dk = waited(dot(dlogits.to(k.dtype), q, dk, DOT_PRECISION))
    gate = gate_of(alpha_ptr, ACC)
    out = ((batch * m + key) * kv_heads + kv_head) * HEADDIM
    store_tile(dk_ptr, out, within, dk * (gate * SCALE), HEADDIM, D)
    store_tile(dv_ptr, out, within, dv * gate, HEADDIM, D)
