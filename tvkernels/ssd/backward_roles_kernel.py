"""The roles of the scan's backward: everything that one chunk of one group gives its inputs.

Of one chunk and the heads of a group (i, j are tokens, M_ij = G_i.x_j, K_ij = C_i.B_j, L the decays
between them, S the state before the chunk and R the gradient behind it), the roles give

    C   sum_h decay_from_start_i S G_i, its dot with C_i for each head (q), and decay <R, S>
    B   sum_h decay_to_end_j delta_j R x_j, its dot with B_j for each head and without delta_j (r)
    K   sum_h L_ij delta_j M_ij, and for each head the sums of K o L o M by rows and by columns
    x   dx_j = delta_j (sum_i K_ij L_ij G_i + decay_to_end_j R^T B_j) + D G_j
    z   dz_i = dout_i silu'(z_i) (sum_j K_ij L_ij delta_j x_j + decay_from_start_i S^T C_i + D x_i)

Sums over the heads stay in a program: nothing is added by two. Scales go on float32 results, and
delta and D into the tile that multiplies G, so x and G go from memory to a product untouched. Role
z is a launch of its own, behind the others, because dz takes the memory of G, which they read.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import silu_slope, strides
from tvkernels.core.tune import tuned
from tvkernels.ssd.backward_tiles_kernel import (
    bounds_of,
    columns_of,
    configs,
    count_pieces,
    decay,
    decay_from_start,
    decay_through,
    decay_to_end,
    held,
    load_log,
    load_piece,
    load_rows,
    load_state,
    product,
    reached,
)

# what a program's number within its chunk and group stands for; then come the parts of role x (more
# than one for D of each channel, which needs G in registers too), and of role K
ROLE_C, ROLE_B = (tl.constexpr(i) for i in range(2))


@triton.constexpr_function
def stages(headdim, n, dtype):
    """Of the loops over the heads: large states have no room for a second one beside them."""
    return 1 if headdim * n * dtype.primitive_bitwidth > 8 * 40960 else None


@triton.jit
def _states_role(
    rows_ptr, matrix_ptr, state_ptr, other_ptr, step_ptr, log_ptr, seg_ptr, ends_ptr,
    dots_ptr, through_ptr, sum_ptr, start, stop, pitch, low_by, ratio,
    rows_token, rows_head, rows_channel, matrix_token, matrix_entry, sum_token,
    BACK: tl.constexpr, HEADDIM: tl.constexpr, PIECES: tl.constexpr, D_STATE: tl.constexpr,
    N: tl.constexpr, T: tl.constexpr, PRECISE: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Role B; with BACK role C."""
    OP: tl.constexpr = state_ptr.dtype.element_ty
    # entries of a state at a time: sums of all of them, beside their total, would spill
    SOME: tl.constexpr = min(N, 64)
    t = start + tl.arange(0, T).to(tl.int64)
    here = held(ends_ptr, tl.arange(0, T), start, stop, T)
    matrix, total = (), ()
    for n in tl.static_range(0, N, SOME):
        some_ptr = matrix_ptr + tl.cast(n, tl.int64) * matrix_entry
        matrix += (load_rows(some_ptr, t, stop, matrix_token, matrix_entry, D_STATE - n, SOME, OP),)
        total += (tl.zeros((T, SOME), ACC),)
    # what could be computed before the loop would cost registers in it, and spills
    for i in tl.range(0, ratio, num_stages=stages(HEADDIM, N, OP), disable_licm=True):
        head = tl.cast(i, tl.int64)
        vectors = head * pitch
        rows = ()
        for k in tl.static_range(PIECES):
            head_ptr = rows_ptr + head * rows_head
            rows += (load_piece(head_ptr, t, stop, rows_token, rows_channel, k, HEADDIM, OP),)
        if BACK:
            left = decay_from_start(
                log_ptr + vectors, low_by, seg_ptr, t, here, start, stop, PRECISE
            )
        else:
            left = decay_to_end(log_ptr + vectors, low_by, seg_ptr, t, here, stop, PRECISE)
        dots, carried = tl.zeros((T,), ACC), 0.0
        new = ()
        for n in tl.static_range(0, N, SOME):
            at = (head * D_STATE + n) * HEADDIM
            part = tl.zeros((T, SOME), ACC)
            for k in tl.static_range(PIECES):
                state = load_state(state_ptr + at, k, HEADDIM, D_STATE - n, SOME)
                part = product(rows[k], tl.trans(state), part, DOT)
                if BACK:
                    other = load_state(other_ptr + at, k, HEADDIM, D_STATE - n, SOME)
                    carried += tl.sum(state.to(ACC) * other.to(ACC))
            part *= left[:, None]
            dots += tl.sum(part * matrix[n // SOME].to(ACC), 1)
            if not BACK:
                part *= tl.load(step_ptr + vectors + t, mask=here, other=0.0)[:, None]
            new += (total[n // SOME] + part,)
        total = new
        tl.store(dots_ptr + vectors + t, dots, mask=here)
        if BACK:
            through = decay_through(log_ptr + vectors, low_by, seg_ptr, start, stop, PRECISE)
            tl.store(through_ptr + head, carried * through)
    for n in tl.static_range(0, N, SOME):
        entry = n + tl.arange(0, SOME).to(tl.int64)
        mask = (t < stop)[:, None] & (entry < D_STATE)[None, :]
        tl.store(sum_ptr + (t * sum_token)[:, None] + entry[None, :], total[n // SOME], mask=mask)


@triton.jit
def _pairs_role(
    x_ptr, g_ptr, b_ptr, c_ptr, step_ptr, log_ptr, seg_ptr, ends_ptr,
    pairs_ptr, after_ptr, own_ptr, path_ptr, dd_ptr, block, start, stop, pitch, low_by, ratio,
    x_token, x_head, x_channel, g_token, g_head, g_channel, b_token, b_entry, c_token, c_entry,
    HEADDIM: tl.constexpr, PIECES: tl.constexpr, D_STATE: tl.constexpr, N: tl.constexpr,
    T: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, PRECISE: tl.constexpr,
    OP: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Role K of the queries of one block, and of the keys of the whole chunk."""
    key = start + tl.arange(0, T).to(tl.int64)
    query = start + block * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    # by their places in the chunk, which are 32 bits wide
    at_key = tl.arange(0, T)[:, None]
    at_query = (block * BLOCK).to(tl.int32) + tl.arange(0, BLOCK)[None, :]
    same, earlier = at_key == at_query, at_key < at_query
    here = held(ends_ptr, block * BLOCK + tl.arange(0, BLOCK), start, stop, T)
    here_key = held(ends_ptr, tl.arange(0, T), start, stop, T)
    b = load_rows(b_ptr, key, stop, b_token, b_entry, D_STATE, N, OP)
    c = load_rows(c_ptr, query, stop, c_token, c_entry, D_STATE, N, OP)
    scores = product(b, tl.trans(c), tl.zeros((T, BLOCK), ACC), DOT)
    # of each token with itself, by rows: a sum by columns goes through eight lanes and all warps
    own_scores = tl.sum(tl.where(same, scores, 0.0), 1)
    mine = here_key & (tl.arange(0, T) // BLOCK == block)
    # here and not in the loop: without a mask there all is finite too, since no decay exceeds 1
    reaches = reached(seg_ptr, start, stop, at_key, at_query)
    scores = tl.where(reaches & earlier, scores, 0.0)
    total = tl.zeros((T, BLOCK), ACC)
    for i in tl.range(0, ratio, num_stages=stages(HEADDIM, N, OP)):
        head = tl.cast(i, tl.int64)
        m = tl.zeros((T, BLOCK), ACC)
        for k in tl.static_range(PIECES):
            x = load_piece(x_ptr + head * x_head, key, stop, x_token, x_channel, k, HEADDIM, OP)
            g = load_piece(g_ptr + head * g_head, query, stop, g_token, g_channel, k, HEADDIM, OP)
            m = product(x, tl.trans(g), m, DOT)
            if COLUMNS:
                # D of each channel: the rows of this block's own tokens
                x = load_piece(
                    x_ptr + head * x_head, query, stop, x_token, x_channel, k, HEADDIM, ACC
                )
                column = columns_of(k, HEADDIM)
                to = dd_ptr + head * HEADDIM + column
                tl.store(to, tl.sum(x * g.to(ACC), 0), mask=column < HEADDIM)
        vectors = head * pitch
        own = tl.sum(tl.where(same, m, 0.0), 1)
        if not COLUMNS:
            # not the sum of `own`, of which Triton 3.6 makes no code for sm_100
            tl.store(dd_ptr + head, tl.sum(tl.where(same, m, 0.0)))
        log, low = load_log(log_ptr + vectors, low_by, query, here, PRECISE)
        log_, low_ = load_log(log_ptr + vectors, low_by, key, here_key, PRECISE)
        left = decay(log[None, :], low[None, :], log_[:, None], low_[:, None], PRECISE)
        step = tl.load(step_ptr + vectors + key, mask=here_key, other=0.0)
        m *= left
        total += m * step[:, None]
        m *= scores
        tl.store(after_ptr + vectors + key, tl.sum(m, 1), mask=here_key)
        m *= step[:, None]
        if PRECISE:
            # paths that end at or behind each query, then those of earlier keys: no difference
            m = tl.where(earlier, tl.cumsum(m, 1, reverse=True), 0.0)
        tl.store(path_ptr + vectors + query, tl.sum(m, 0), mask=here)
        tl.store(own_ptr + vectors + key, own * own_scores, mask=mine)
    # `join` sets to 0 what does not reach
    tl.store(pairs_ptr + at_key * T + at_query, total.to(OP))


@triton.jit
def _output_role(
    v_ptr, row_ptr, col_ptr, state_ptr, d_ptr, step_ptr, log_ptr, seg_ptr, ends_ptr, out_ptr, z_ptr,
    dout_ptr, part, start, stop, pitch, low_by, ratio, v_token, v_head, v_channel,
    row_token, row_entry, col_token, col_entry, first, d_head, d_channel, out_token,
    z_token, z_head, z_channel,
    dout_token, dout_head, dout_channel,
    BACK: tl.constexpr, ROWS: tl.constexpr, HEADDIM: tl.constexpr, PIECES: tl.constexpr,
    D_STATE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISE: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of role x (BACK: of G, B, C and R) or of role z (of x, C, B and S)."""
    OP: tl.constexpr = state_ptr.dtype.element_ty
    # rows of the result, and the tokens that they sum over
    t = start + part * ROWS + tl.arange(0, ROWS).to(tl.int64)
    u = start + tl.arange(0, T).to(tl.int64)
    row = load_rows(row_ptr, t, stop, row_token, row_entry, D_STATE, N, OP)
    col = load_rows(col_ptr, u, stop, col_token, col_entry, D_STATE, N, OP)
    scores = product(row, tl.trans(col), tl.zeros((ROWS, T), ACC), DOT)
    at_t, at_u = (t - start).to(tl.int32)[:, None], tl.arange(0, T)[None, :]
    if BACK:
        reaches = reached(seg_ptr, start, stop, at_t, at_u)
    else:
        reaches = reached(seg_ptr, start, stop, at_u, at_t)
    scores = tl.where(reaches, scores, 0.0)
    same = at_t == at_u
    here_t = held(ends_ptr, part * ROWS + tl.arange(0, ROWS), start, stop, T)
    here_u = held(ends_ptr, tl.arange(0, T), start, stop, T)
    for i in tl.range(0, ratio, num_stages=stages(HEADDIM, N, OP)):
        head = tl.cast(i, tl.int64)
        logs = log_ptr + head * pitch
        log_t, low_t = load_log(logs, low_by, t, here_t, PRECISE)
        log_u, low_u = load_log(logs, low_by, u, here_u, PRECISE)
        steps = step_ptr + head * pitch
        if BACK:
            left = decay(log_u[None, :], low_u[None, :], log_t[:, None], low_t[:, None], PRECISE)
            step = tl.load(steps + t, mask=here_t, other=0.0)
            weight = left * step[:, None]
            scale = decay_to_end(logs, low_by, seg_ptr, t, here_t, stop, PRECISE) * step
        else:
            left = decay(log_t[:, None], low_t[:, None], log_u[None, :], low_u[None, :], PRECISE)
            weight = left * tl.load(steps + u, mask=here_u, other=0.0)[None, :]
            scale = decay_from_start(logs, low_by, seg_ptr, t, here_t, start, stop, PRECISE)
        weight *= scores
        if d_ptr is not None and not COLUMNS:
            weight += tl.where(same, tl.load(d_ptr + (first + head) * d_head).to(ACC), 0.0)
        weight = weight.to(OP)
        for k in tl.static_range(PIECES):
            column = columns_of(k, HEADDIM)
            state = load_state(state_ptr + head * HEADDIM * D_STATE, k, HEADDIM, D_STATE, N)
            v = load_piece(v_ptr + head * v_head, u, stop, v_token, v_channel, k, HEADDIM, OP)
            y = tl.zeros((ROWS, column.shape[0]), ACC)
            y = product(row, state, y, DOT) * scale[:, None]
            y = product(weight, v, y, DOT)
            if d_ptr is not None and COLUMNS:
                d = d_ptr + (first + head) * d_head + column * d_channel
                v = load_piece(v_ptr + head * v_head, t, stop, v_token, v_channel, k, HEADDIM, OP)
                y += tl.load(d, mask=column < HEADDIM, other=0.0).to(ACC)[None, :] * v.to(ACC)
            if z_ptr is not None:
                z = load_piece(z_ptr + head * z_head, t, stop, z_token, z_channel, k, HEADDIM, ACC)
                y *= silu_slope(z) * load_piece(
                    dout_ptr + head * dout_head, t, stop, dout_token, dout_channel, k, HEADDIM, ACC
                )
            at = out_ptr + (t * out_token)[:, None] + (head * HEADDIM + column)[None, :]
            mask = (t < stop)[:, None] & (column < HEADDIM)[None, :]
            tl.store(at, y.to(out_ptr.dtype.element_ty), mask=mask)


# four warps have no room for a tile of 128 tokens, nor have sm_120 and gfx942 for a second stage,
# without which sm_90 spills in its loops
CONFIGS = configs(
    {"default": ((8, 1),), "gfx942": ((8, 1),), "sm_90": ((8, 2),)}
    | dict.fromkeys(("sm_80", "sm_100"), ((8, 2), (8, 1)))
)


@tuned(CONFIGS, key=["HEADDIM", "D_STATE", "T"])
@triton.jit(do_not_specialize=["seqlen", "chunks"])
def scan_backward_roles_kernel(
    x_ptr, g_ptr, b_ptr, c_ptr, d_ptr, entering_ptr, leaving_ptr,
    step_ptr, log_ptr, seg_ptr, ends_ptr, dx_ptr, db_ptr, dc_ptr, pairs_ptr, dd_ptr,
    q_ptr, r_ptr, own_ptr, path_ptr, after_ptr, through_ptr,
    seqlen, pitch, chunks, heads, ratio, low_by: tl.int64,
    x_batch: tl.int64, x_token, x_head, x_channel, g_batch: tl.int64, g_token, g_head, g_channel,
    b_batch: tl.int64, b_token, b_group, b_entry, c_batch: tl.int64, c_token, c_group, c_entry,
    d_head, d_channel,
    HEADDIM: tl.constexpr, PIECES: tl.constexpr, D_STATE: tl.constexpr, N: tl.constexpr,
    T: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, PRECISE: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # one program owns one role of one chunk of one group; neighbours own its other roles
    BLOCKS: tl.constexpr = T // BLOCK
    PARTS: tl.constexpr = BLOCKS if COLUMNS else 1
    groups, slots = heads // ratio, 2 + PARTS + BLOCKS
    role, place = tl.program_id(0) % slots, (tl.program_id(0) // slots).to(tl.int64)
    group, chunk, batch = place % groups, place // groups % chunks, place // groups // chunks
    head = group * ratio
    start, stop = bounds_of(ends_ptr, chunk, seqlen, T)
    number, vectors = batch * chunks + chunk, (batch * heads + head) * pitch
    step_ptr, log_ptr = step_ptr + vectors, log_ptr + vectors
    x_ptr, g_ptr = x_ptr + batch * x_batch + head * x_head, g_ptr + batch * g_batch + head * g_head
    b_ptr += batch * b_batch + group * b_group
    c_ptr += batch * c_batch + group * c_group
    state = (number * heads + head) * HEADDIM * D_STATE
    entering_ptr, leaving_ptr = entering_ptr + state, leaving_ptr + state
    sums, sum_token = (batch * seqlen * groups + group) * D_STATE, groups * D_STATE
    rows, row_token = (batch * seqlen * heads + head) * HEADDIM, heads * HEADDIM
    if seg_ptr is not None:
        seg_ptr += batch * seqlen
    if role == ROLE_C:
        _states_role(
            g_ptr, c_ptr, entering_ptr, leaving_ptr, step_ptr, log_ptr, seg_ptr, ends_ptr,
            q_ptr + vectors, through_ptr + number * heads + head, dc_ptr + sums, start, stop, pitch,
            low_by, ratio, g_token, g_head, g_channel, c_token, c_entry, sum_token,
            True, HEADDIM, PIECES, D_STATE, N, T, PRECISE, ACC, DOT,
        )  # fmt: skip
    elif role == ROLE_B:
        _states_role(
            x_ptr, b_ptr, leaving_ptr, entering_ptr, step_ptr, log_ptr, seg_ptr, ends_ptr,
            r_ptr + vectors, through_ptr, db_ptr + sums, start, stop, pitch, low_by, ratio,
            x_token, x_head, x_channel, b_token, b_entry, sum_token,
            False, HEADDIM, PIECES, D_STATE, N, T, PRECISE, ACC, DOT,
        )  # fmt: skip
    elif role < 2 + PARTS:
        _output_role(
            g_ptr, b_ptr, c_ptr, leaving_ptr, d_ptr, step_ptr, log_ptr, seg_ptr, ends_ptr,
            dx_ptr + rows, None, None, role - 2, start, stop, pitch, low_by, ratio, g_token, g_head,
            g_channel, b_token, b_entry, c_token, c_entry, head, d_head, d_channel, row_token, 0, 0,
            0, 0, 0, 0, True, T // PARTS, HEADDIM, PIECES, D_STATE, N, T, COLUMNS, PRECISE, ACC,
            DOT,
        )  # fmt: skip
    else:
        block = (role - 2 - PARTS).to(tl.int64)
        dd_ptr += ((number * BLOCKS + block) * heads + head) * (HEADDIM if COLUMNS else 1)
        _pairs_role(
            x_ptr, g_ptr, b_ptr, c_ptr, step_ptr, log_ptr, seg_ptr, ends_ptr,
            pairs_ptr + (number * groups + group) * T * T, after_ptr + block * low_by + vectors,
            own_ptr + vectors, path_ptr + vectors, dd_ptr, block, start, stop, pitch, low_by,
            ratio, x_token, x_head, x_channel, g_token, g_head, g_channel, b_token, b_entry,
            c_token, c_entry, HEADDIM, PIECES, D_STATE, N, T, BLOCK, COLUMNS, PRECISE,
            entering_ptr.dtype.element_ty, ACC, DOT,
        )  # fmt: skip


@tuned(CONFIGS, key=["HEADDIM", "D_STATE", "T"])
@triton.jit(do_not_specialize=["seqlen", "chunks"])
def scan_backward_dz_kernel(
    x_ptr, b_ptr, c_ptr, d_ptr, z_ptr, dout_ptr, entering_ptr,
    step_ptr, log_ptr, seg_ptr, ends_ptr, dz_ptr,
    seqlen, pitch, chunks, heads, ratio, low_by: tl.int64,
    x_batch: tl.int64, x_token, x_head, x_channel,
    b_batch: tl.int64, b_token, b_group, b_entry, c_batch: tl.int64, c_token, c_group, c_entry,
    d_head, d_channel, z_batch: tl.int64, z_token, z_head, z_channel,
    dout_batch: tl.int64, dout_token, dout_head, dout_channel,
    HEADDIM: tl.constexpr, PIECES: tl.constexpr, D_STATE: tl.constexpr, N: tl.constexpr,
    T: tl.constexpr, BLOCK: tl.constexpr, PRECISE: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # one program owns role z of one block of one chunk of one group
    BLOCKS: tl.constexpr = T // BLOCK
    groups = heads // ratio
    part, place = tl.program_id(0) % BLOCKS, (tl.program_id(0) // BLOCKS).to(tl.int64)
    group, chunk, batch = place % groups, place // groups % chunks, place // groups // chunks
    head = group * ratio
    start, stop = bounds_of(ends_ptr, chunk, seqlen, T)
    vectors = (batch * heads + head) * pitch
    state = ((batch * chunks + chunk) * heads + head) * HEADDIM * D_STATE
    if seg_ptr is not None:
        seg_ptr += batch * seqlen
    _output_role(
        x_ptr + batch * x_batch + head * x_head, c_ptr + batch * c_batch + group * c_group,
        b_ptr + batch * b_batch + group * b_group, entering_ptr + state, d_ptr, step_ptr + vectors,
        log_ptr + vectors, seg_ptr, ends_ptr, dz_ptr + (batch * seqlen * heads + head) * HEADDIM,
        z_ptr + batch * z_batch + head * z_head, dout_ptr + batch * dout_batch + head * dout_head,
        part, start, stop, pitch, low_by, ratio, x_token, x_head, x_channel, c_token, c_entry,
        b_token, b_entry, head, d_head, d_channel, heads * HEADDIM, z_token, z_head, z_channel,
        dout_token, dout_head, dout_channel, False, BLOCK, HEADDIM, PIECES, D_STATE, N, T, True,
        PRECISE, ACC, DOT,
    )  # fmt: skip


def roles(plan, x, G, B, C, D, entering, leaving):
    """dx, and what is left to add up: a dictionary of the sums by their names."""
    batch, seqlen, heads, headdim = x.shape
    groups, d_state = B.shape[2:]

    def empty(*shape, dtype=plan.dtype):
        return torch.empty(shape, dtype=dtype, device=x.device)

    dx = empty(*x.shape, dtype=x.dtype)
    columns = D is not None and D.ndim == 2
    blocks = plan.T // plan.block
    sums = {name: empty(batch, seqlen, groups, d_state) for name in ("dB", "dC")}
    sums["pairs"] = empty(batch, plan.chunks, groups, plan.T, plan.T, dtype=plan.operands)
    sums["dD"] = empty(batch, plan.chunks * blocks, heads, headdim if columns else 1)
    sums |= {name: empty(batch, heads, plan.pitch) for name in ("q", "r", "own", "path")}
    sums["after"] = empty(blocks, batch, heads, plan.pitch)
    sums["through"] = empty(batch, plan.chunks, heads)
    slots = 2 + (blocks if columns else 1) + blocks
    if x.numel():
        scan_backward_roles_kernel[(slots * groups * plan.chunks * batch,)](
            x, G, B, C, D, entering, leaving,
            plan.step, plan.log, plan.segment, plan.ends, dx, *sums.values(),
            seqlen, plan.pitch, plan.chunks, heads, heads // groups, plan.step.numel(),
            *x.stride(), *G.stride(), *B.stride(), *C.stride(), *_strides_of_skip(D),
            COLUMNS=columns, **_sizes(plan, x, B),
        )  # fmt: skip
    return dx, sums


def gate_role(plan, x, B, C, D, z, dout, entering, dz):
    """dz into `dz`."""
    batch, heads, groups = x.shape[0], x.shape[2], B.shape[2]
    if x.numel():
        scan_backward_dz_kernel[(plan.T // plan.block * groups * plan.chunks * batch,)](
            x, B, C, D, z, dout, entering, plan.step, plan.log, plan.segment, plan.ends, dz,
            x.shape[1], plan.pitch, plan.chunks, heads, heads // groups, plan.step.numel(),
            *x.stride(), *B.stride(), *C.stride(), *_strides_of_skip(D), *z.stride(),
            *dout.stride(), **_sizes(plan, x, B),
        )  # fmt: skip


def _strides_of_skip(D):
    """Of heads and channels; 0 for what is the same for all."""
    return (*strides(D, 1), 0) if D is None or D.ndim == 1 else D.stride()


def _sizes(plan, x, B):
    headdim, d_state = x.shape[3], B.shape[3]
    return {
        "HEADDIM": headdim, "PIECES": count_pieces(headdim), "D_STATE": d_state, "N": plan.N,
        "T": plan.T, "BLOCK": plan.block, "PRECISE": plan.precise, "ACC": plan.acc,
    }  # fmt: skip
