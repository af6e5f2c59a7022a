"""Device functions of the chunk_scan backward: what each role of a program computes.

A role takes all heads of one group through one chunk; see backward_chunk_scan_kernel.py.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import dot, silu_slope
from tvkernels.ssd.backward_device import (
    chunk_decay,
    decay_between,
    decay_from_start,
    decay_to_end,
    is_sound,
    is_stored,
    load_bc,
    load_cumsum,
    load_state,
    load_tile,
    reached,
    spoil,
    tile_channels,
)


@triton.constexpr_function
def stages(headdim, n, dtype):
    """num_stages of the loops over heads; None: as configured. Two large states do not fit in
    shared memory."""
    return 1 if headdim * n * dtype.primitive_bitwidth > 8 * 40960 else None


@triton.jit
def dbc_role(
    x_or_dy_ptr, bc_ptr, state_ptr, other_state_ptr, delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr,
    paths_ptr, paths_through_ptr, dbc_ptr, start, stop, pitch, low_offset, heads_per_group, x_token,
    x_head, x_channel, bc_token, bc_dstate, dbc_token, IS_DC: tl.constexpr, HEADDIM: tl.constexpr,
    TILES: tl.constexpr, D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr,
    CHUNK_SIZE: tl.constexpr, TWO_FLOATS: tl.constexpr, ACC: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Role dB, from x, B and dS; with IS_DC role dC, from dy, C and S."""
    DOT_DTYPE: tl.constexpr = state_ptr.dtype.element_ty
    # part of d_state at a time: the dots of all of it beside their sums over heads would spill
    SUB_DSTATE: tl.constexpr = min(BLOCK_DSTATE, 64)
    t = start + tl.arange(0, CHUNK_SIZE).to(tl.int64)
    stored = is_stored(bounds_ptr, tl.arange(0, CHUNK_SIZE), start, stop, CHUNK_SIZE)
    sound = is_sound(resets_ptr, t, stop)
    bc, total = (), ()
    for n in tl.static_range(0, BLOCK_DSTATE, SUB_DSTATE):
        sub_ptr = bc_ptr + tl.cast(n, tl.int64) * bc_dstate
        sub = load_bc(sub_ptr, t, sound, bc_token, bc_dstate, D_STATE - n, SUB_DSTATE, DOT_DTYPE)
        bc += (sub,)
        total += (tl.zeros((CHUNK_SIZE, SUB_DSTATE), ACC),)
    STAGES: tl.constexpr = stages(HEADDIM, BLOCK_DSTATE, DOT_DTYPE)
    # disable_licm: hoisting loop-invariant code raises register pressure until it spills
    for i in tl.range(0, heads_per_group, num_stages=STAGES, disable_licm=True):
        head = tl.cast(i, tl.int64)
        vectors = head * pitch
        tiles = ()
        for k in tl.static_range(TILES):
            head_ptr = x_or_dy_ptr + head * x_head
            tiles += (load_tile(head_ptr, t, sound, x_token, x_channel, k, HEADDIM, DOT_DTYPE),)
        if IS_DC:
            decay = decay_from_start(
                cumsum_ptr + vectors, low_offset, resets_ptr, t, stored, start, stop, TWO_FLOATS
            )
        else:
            decay = decay_to_end(
                cumsum_ptr + vectors, low_offset, resets_ptr, t, stored, stop, TWO_FLOATS
            )
        paths, inner = tl.zeros((CHUNK_SIZE,), ACC), 0.0
        new = ()
        for n in tl.static_range(0, BLOCK_DSTATE, SUB_DSTATE):
            at = (head * D_STATE + n) * HEADDIM
            grad = tl.zeros((CHUNK_SIZE, SUB_DSTATE), ACC)
            for k in tl.static_range(TILES):
                state = load_state(state_ptr + at, k, HEADDIM, D_STATE - n, SUB_DSTATE)
                grad = dot(tiles[k], tl.trans(state), grad, DOT_PRECISION)
                if IS_DC:
                    other = load_state(other_state_ptr + at, k, HEADDIM, D_STATE - n, SUB_DSTATE)
                    inner += tl.sum(state.to(ACC) * other.to(ACC))
            grad *= decay[:, None]
            paths += tl.sum(grad * bc[n // SUB_DSTATE].to(ACC), 1)
            if not IS_DC:
                grad *= tl.load(delta_ptr + vectors + t, mask=stored, other=0.0)[:, None]
            new += (total[n // SUB_DSTATE] + grad,)
        total = new
        tl.store(paths_ptr + vectors + t, paths, mask=stored)
        if IS_DC:
            decay = chunk_decay(
                cumsum_ptr + vectors, low_offset, resets_ptr, start, stop, TWO_FLOATS
            )
            tl.store(paths_through_ptr + head, inner * decay)
    for n in tl.static_range(0, BLOCK_DSTATE, SUB_DSTATE):
        entry = n + tl.arange(0, SUB_DSTATE).to(tl.int64)
        mask = (t < stop)[:, None] & (entry < D_STATE)[None, :]
        at = dbc_ptr + (t * dbc_token)[:, None] + entry[None, :]
        tl.store(at, total[n // SUB_DSTATE], mask=mask)


@triton.jit
def _x_dot_dy(
    x_ptr, dy_ptr, dD_ptr, key, query, key_sound, query_sound, x_token, x_channel, dy_token,
    dy_channel, HEADDIM: tl.constexpr, TILES: tl.constexpr, CHUNK_SIZE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, D_PER_CHANNEL: tl.constexpr, DOT_DTYPE: tl.constexpr,
    ACC: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    """x_j . dy_i of one head, (keys, queries); stores dD per channel."""
    m = tl.zeros((CHUNK_SIZE, BLOCK_QUERIES), ACC)
    for k in tl.static_range(TILES):
        x = load_tile(x_ptr, key, key_sound, x_token, x_channel, k, HEADDIM, DOT_DTYPE)
        dy = load_tile(dy_ptr, query, query_sound, dy_token, dy_channel, k, HEADDIM, DOT_DTYPE)
        m = dot(x, tl.trans(dy), m, DOT_PRECISION)
        if D_PER_CHANNEL:
            # x of the queries' own tokens
            x = load_tile(x_ptr, query, query_sound, x_token, x_channel, k, HEADDIM, ACC)
            channel = tile_channels(k, HEADDIM)
            tl.store(dD_ptr + channel, tl.sum(x * dy.to(ACC), 0), mask=channel < HEADDIM)
    return m


@triton.jit
def dCB_role(
    x_ptr, dy_ptr, B_ptr, C_ptr, delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr, dCB_ptr,
    ddelta_later_ptr, ddelta_self_ptr, paths_inside_ptr, dD_ptr, block, start, stop, pitch,
    low_offset, heads_per_group, x_token, x_head, x_channel, dy_token, dy_head, dy_channel, B_token,
    B_dstate, C_token, C_dstate, HEADDIM: tl.constexpr, TILES: tl.constexpr, D_STATE: tl.constexpr,
    BLOCK_DSTATE: tl.constexpr, CHUNK_SIZE: tl.constexpr, BLOCK_QUERIES: tl.constexpr,
    D_PER_CHANNEL: tl.constexpr, TWO_FLOATS: tl.constexpr, DOT_DTYPE: tl.constexpr,
    ACC: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Role dCB: one block of queries (tokens of C and dy), all keys of the chunk (of B and x)."""
    key = start + tl.arange(0, CHUNK_SIZE).to(tl.int64)
    query = start + block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES).to(tl.int64)
    # positions within the chunk, 32 bits wide
    at_key = tl.arange(0, CHUNK_SIZE)[:, None]
    at_query = (block * BLOCK_QUERIES).to(tl.int32) + tl.arange(0, BLOCK_QUERIES)[None, :]
    same, earlier = at_key == at_query, at_key < at_query
    query_stored = is_stored(
        bounds_ptr, block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES), start, stop, CHUNK_SIZE
    )
    key_stored = is_stored(bounds_ptr, tl.arange(0, CHUNK_SIZE), start, stop, CHUNK_SIZE)
    key_sound, query_sound = is_sound(resets_ptr, key, stop), is_sound(resets_ptr, query, stop)
    b = load_bc(B_ptr, key, key_sound, B_token, B_dstate, D_STATE, BLOCK_DSTATE, DOT_DTYPE)
    c = load_bc(C_ptr, query, query_sound, C_token, C_dstate, D_STATE, BLOCK_DSTATE, DOT_DTYPE)
    scores = dot(b, tl.trans(c), tl.zeros((CHUNK_SIZE, BLOCK_QUERIES), ACC), DOT_PRECISION)
    # the diagonal as sums of rows: a sum of channels would cross eight lanes and all warps
    own_scores = tl.sum(tl.where(same, scores, 0.0), 1)
    own_key = key_stored & (tl.arange(0, CHUNK_SIZE) // BLOCK_QUERIES == block)
    # masked once before the loop: no decay exceeds 1, so everything in the loop is finite
    reaches = reached(resets_ptr, start, stop, at_key, at_query)
    scores = tl.where(reaches & earlier, scores, 0.0)
    total = tl.zeros((CHUNK_SIZE, BLOCK_QUERIES), ACC)
    for i in tl.range(0, heads_per_group, num_stages=stages(HEADDIM, BLOCK_DSTATE, DOT_DTYPE)):
        head = tl.cast(i, tl.int64)
        m = _x_dot_dy(
            x_ptr + head * x_head, dy_ptr + head * dy_head, dD_ptr + head * HEADDIM, key, query,
            key_sound, query_sound, x_token, x_channel, dy_token, dy_channel, HEADDIM, TILES,
            CHUNK_SIZE, BLOCK_QUERIES, D_PER_CHANNEL, DOT_DTYPE, ACC, DOT_PRECISION,
        )  # fmt: skip
        vectors = head * pitch
        own = tl.sum(tl.where(same, m, 0.0), 1)
        if not D_PER_CHANNEL:
            # not the sum of `own`: Triton 3.6 fails to compile that for sm_100
            tl.store(dD_ptr + head, tl.sum(tl.where(same, m, 0.0)))
        query_sum, query_low = load_cumsum(
            cumsum_ptr + vectors, low_offset, query, query_stored, TWO_FLOATS
        )
        key_sum, key_low = load_cumsum(
            cumsum_ptr + vectors, low_offset, key, key_stored, TWO_FLOATS
        )
        decay = decay_between(
            query_sum[None, :], query_low[None, :], key_sum[:, None], key_low[:, None], TWO_FLOATS
        )
        delta = tl.load(delta_ptr + vectors + key, mask=key_stored, other=0.0)
        m *= decay
        total += m * delta[:, None]
        m *= scores
        tl.store(ddelta_later_ptr + vectors + key, tl.sum(m, 1), mask=key_stored)
        m *= delta[:, None]
        if TWO_FLOATS:
            # sum the paths that pass over each query, instead of a difference of two sums: paths
            # that end at or behind it, of keys before it
            m = tl.where(earlier, tl.cumsum(m, 1, reverse=True), 0.0)
        tl.store(paths_inside_ptr + vectors + query, tl.sum(m, 0), mask=query_stored)
        tl.store(ddelta_self_ptr + vectors + key, own * own_scores, mask=own_key)
    # not masked: scan_backward_bmm_kernel masks what it loads
    tl.store(dCB_ptr + at_key * CHUNK_SIZE + at_query, total.to(DOT_DTYPE))


@triton.jit
def _weights(
    cumsum_ptr, delta_ptr, low_offset, resets_ptr, t, t_stored, u, u_stored, start, stop,
    IS_DX: tl.constexpr, TWO_FLOATS: tl.constexpr,
):  # fmt: skip
    """Decay times delta between the tokens t (rows) and u (columns), without C B^T, and between t
    and the state."""
    sum_t, low_t = load_cumsum(cumsum_ptr, low_offset, t, t_stored, TWO_FLOATS)
    sum_u, low_u = load_cumsum(cumsum_ptr, low_offset, u, u_stored, TWO_FLOATS)
    if IS_DX:
        decay = decay_between(
            sum_u[None, :], low_u[None, :], sum_t[:, None], low_t[:, None], TWO_FLOATS
        )
        delta = tl.load(delta_ptr + t, mask=t_stored, other=0.0)
        weight = decay * delta[:, None]
        scale = decay_to_end(cumsum_ptr, low_offset, resets_ptr, t, t_stored, stop, TWO_FLOATS)
        scale *= delta
    else:
        decay = decay_between(
            sum_t[:, None], low_t[:, None], sum_u[None, :], low_u[None, :], TWO_FLOATS
        )
        weight = decay * tl.load(delta_ptr + u, mask=u_stored, other=0.0)[None, :]
        scale = decay_from_start(
            cumsum_ptr, low_offset, resets_ptr, t, t_stored, start, stop, TWO_FLOATS
        )
    return weight, scale


@triton.jit
def dx_or_dz_role(
    value_ptr, row_ptr, col_ptr, state_ptr, D_ptr, delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr,
    out_ptr, block, start, stop, pitch, low_offset, heads_per_group, value_token, value_head,
    value_channel, row_token, row_dstate, col_token, col_dstate, first_head, D_head, D_channel,
    out_token, IS_DX: tl.constexpr, BLOCK_TOKENS: tl.constexpr, HEADDIM: tl.constexpr,
    TILES: tl.constexpr, D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr,
    CHUNK_SIZE: tl.constexpr, D_PER_CHANNEL: tl.constexpr, TWO_FLOATS: tl.constexpr,
    ACC: tl.constexpr, DOT_PRECISION: tl.constexpr,
    z_ptr=None, z_token=0, z_head=0, z_channel=0,
    dout_ptr=None, dout_token=0, dout_head=0, dout_channel=0,
):  # fmt: skip
    """BLOCK_TOKENS tokens of role dx or dz.

    IS_DX: rows are B, channels C, values dy, the state dS. Otherwise rows are C, channels B, values
    x, the state S, and z and dout are given.
    """
    DOT_DTYPE: tl.constexpr = state_ptr.dtype.element_ty
    # t: rows of the result; u: the tokens that they sum over
    t = start + block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS).to(tl.int64)
    u = start + tl.arange(0, CHUNK_SIZE).to(tl.int64)
    t_sound, u_sound = is_sound(resets_ptr, t, stop), is_sound(resets_ptr, u, stop)
    row = load_bc(row_ptr, t, t_sound, row_token, row_dstate, D_STATE, BLOCK_DSTATE, DOT_DTYPE)
    col = load_bc(col_ptr, u, u_sound, col_token, col_dstate, D_STATE, BLOCK_DSTATE, DOT_DTYPE)
    scores = dot(row, tl.trans(col), tl.zeros((BLOCK_TOKENS, CHUNK_SIZE), ACC), DOT_PRECISION)
    at_t, at_u = (t - start).to(tl.int32)[:, None], tl.arange(0, CHUNK_SIZE)[None, :]
    if IS_DX:
        reaches = reached(resets_ptr, start, stop, at_t, at_u)
    else:
        reaches = reached(resets_ptr, start, stop, at_u, at_t)
    scores = tl.where(reaches, scores, 0.0)
    t_stored = is_stored(
        bounds_ptr, block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS), start, stop, CHUNK_SIZE
    )
    u_stored = is_stored(bounds_ptr, tl.arange(0, CHUNK_SIZE), start, stop, CHUNK_SIZE)
    for i in tl.range(0, heads_per_group, num_stages=stages(HEADDIM, BLOCK_DSTATE, DOT_DTYPE)):
        head = tl.cast(i, tl.int64)
        weight, scale = _weights(
            cumsum_ptr + head * pitch, delta_ptr + head * pitch, low_offset, resets_ptr, t,
            t_stored, u, u_stored, start, stop, IS_DX, TWO_FLOATS,
        )  # fmt: skip
        weight *= scores
        if D_ptr is not None and not D_PER_CHANNEL:
            weight += tl.where(
                at_t == at_u, tl.load(D_ptr + (first_head + head) * D_head).to(ACC), 0.0
            )
        weight = weight.to(DOT_DTYPE)
        for k in tl.static_range(TILES):
            channel = tile_channels(k, HEADDIM)
            at = state_ptr + head * HEADDIM * D_STATE
            state = load_state(at, k, HEADDIM, D_STATE, BLOCK_DSTATE)
            values = value_ptr + head * value_head
            value = load_tile(values, u, u_sound, value_token, value_channel, k, HEADDIM, DOT_DTYPE)
            y = dot(row, state, tl.zeros((BLOCK_TOKENS, channel.shape[0]), ACC), DOT_PRECISION)
            y = dot(weight, value, y * scale[:, None], DOT_PRECISION)
            if D_ptr is not None and D_PER_CHANNEL:
                at = D_ptr + (first_head + head) * D_head + channel * D_channel
                value = load_tile(
                    values, t, t_sound, value_token, value_channel, k, HEADDIM, DOT_DTYPE
                )
                D = tl.load(at, mask=channel < HEADDIM, other=0.0).to(ACC)[None, :]
                y += D * value.to(ACC)
            if z_ptr is not None:
                z = load_tile(
                    z_ptr + head * z_head, t, t_sound, z_token, z_channel, k, HEADDIM, ACC
                )
                at = dout_ptr + head * dout_head
                dout = load_tile(at, t, t_sound, dout_token, dout_channel, k, HEADDIM, ACC)
                y *= silu_slope(z) * dout
            at = out_ptr + (t * out_token)[:, None] + (head * HEADDIM + channel)[None, :]
            mask = (t < stop)[:, None] & (channel < HEADDIM)[None, :]
            y = spoil(y, t_sound[:, None], resets_ptr).to(out_ptr.dtype.element_ty)
            tl.store(at, y, mask=mask)
