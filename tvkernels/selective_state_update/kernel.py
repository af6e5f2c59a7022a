"""Triton engine of the decode step: the state is read once and written once, in place.

Shapes: state (rows, nheads, dim, dstate), x, dt, z and out (batch, nheads, dim), A (nheads, dim,
dstate), B and C (batch, ngroups, dstate), D and dt_bias (nheads, dim), each by any strides. Nearly
all there is to move is the state, so programs are so small that one sequence fills a GPU: 640 of
them for 128 heads of 80 channels, 16 channels each. Sums are float32 (float64 for float64). Not
tuned: timing a kernel that writes in place would write many times.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, softplus, state_step, strides

# elements of the state that a program holds, and that each of its threads holds
TILE, PER_THREAD = 2048, 16


@triton.jit
def state_update_kernel(
    state_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, index_ptr, out_ptr,
    nheads, dim, dstate, heads_per_group,
    state_row, state_head, state_dim, state_col,
    x_batch, x_head, x_dim, dt_batch, dt_head, dt_dim, A_head, A_dim, A_col,
    B_batch, B_group, B_col, C_batch, C_group, C_col, D_head, D_dim,
    z_batch, z_head, z_dim, bias_head, bias_dim, index_stride,
    SOFTPLUS: tl.constexpr, SHARED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program owns ROWS channels of one head of one sequence; neighbours share B and C
    tiles = tl.cdiv(dim, ROWS)
    first = (tl.program_id(0) % tiles) * ROWS
    head = (tl.program_id(0) // tiles) % nheads
    group = (head // heads_per_group).to(tl.int64)
    head = head.to(tl.int64)
    entry = (tl.program_id(0) // tiles // nheads).to(tl.int64)
    row = first + tl.arange(0, ROWS).to(tl.int64)
    col = tl.arange(0, COLS).to(tl.int64)
    in_dim, in_state = row < dim, col < dstate
    tile = in_dim[:, None] & in_state[None, :]

    slot = entry
    if index_ptr is not None:
        slot = tl.load(index_ptr + entry * index_stride).to(tl.int64)
    # a negative index is padding, of which no channel is live
    live = row < tl.where(slot >= 0, dim, 0)
    held = live[:, None] & in_state[None, :]
    state_ptr += slot * state_row + head * state_head
    at = row[:, None] * state_dim + col[None, :] * state_col
    state = tl.load(state_ptr + at, mask=held, other=0.0).to(ACC)

    dt_ptr += entry * dt_batch + head * dt_head
    A_ptr += head * A_head
    if SHARED:
        # one step size and one decay for the whole head
        dt = tl.load(dt_ptr).to(ACC)
        A = tl.load(A_ptr).to(ACC)
        if bias_ptr is not None:
            dt += tl.load(bias_ptr + head * bias_head).to(ACC)
    else:
        dt = tl.load(dt_ptr + row * dt_dim, mask=in_dim, other=0.0).to(ACC)[:, None]
        A_at = row[:, None] * A_dim + col[None, :] * A_col
        A = tl.load(A_ptr + A_at, mask=tile, other=0.0).to(ACC)
        if bias_ptr is not None:
            bias_ptr += head * bias_head
            dt += tl.load(bias_ptr + row * bias_dim, mask=in_dim, other=0.0).to(ACC)[:, None]
    if SOFTPLUS:
        dt = softplus(dt)
    x_ptr += entry * x_batch + head * x_head
    x = tl.load(x_ptr + row * x_dim, mask=in_dim, other=0.0).to(ACC)
    B_ptr += entry * B_batch + group * B_group
    B = tl.load(B_ptr + col * B_col, mask=in_state, other=0.0).to(ACC)
    C_ptr += entry * C_batch + group * C_group
    C = tl.load(C_ptr + col * C_col, mask=in_state, other=0.0).to(ACC)

    state, y = state_step(state, x, dt, A, B, C)
    tl.store(state_ptr + at, state.to(state_ptr.dtype.element_ty), mask=held)
    if D_ptr is not None:
        y += x * tl.load(D_ptr + head * D_head + row * D_dim, mask=in_dim, other=0.0).to(ACC)
    if z_ptr is not None:
        z_ptr += entry * z_batch + head * z_head
        y *= silu(tl.load(z_ptr + row * z_dim, mask=in_dim, other=0.0).to(ACC))
    y = tl.where(live, y, 0.0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (entry * nheads + head) * dim + row, y, mask=in_dim)


def state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, indices):
    """out (batch, nheads, dim), contiguous; every tensor has its heads."""
    batch, nheads, dim = x.shape
    dstate = state.shape[-1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    cols = triton.next_power_of_2(max(1, dstate))
    rows, warps = _tile(dim, cols)
    shared = A.stride()[1:] == (0, 0) and dt.stride(2) == 0 and strides(dt_bias, 2)[1] == 0
    state_update_kernel[(batch * nheads * triton.cdiv(dim, rows),)](
        state, x, dt, A, B, C, D, z, dt_bias, indices, out,
        nheads, dim, dstate, nheads // B.shape[1],
        *state.stride(), *x.stride(), *dt.stride(), *A.stride(), *B.stride(), *C.stride(),
        *strides(D, 2), *strides(z, 3), *strides(dt_bias, 2), *strides(indices, 1),
        SOFTPLUS=dt_softplus, SHARED=shared, ROWS=rows, COLS=cols,
        ACC=accumulator(state.dtype, x.dtype),
        num_warps=warps,
    )  # fmt: skip
    return out


def _tile(dim, cols):
    """Channels that a program holds, if it can be a number that divides them all; its warps."""
    most = max(1, min(TILE // cols, triton.next_power_of_2(dim)))
    divisor = min(most, dim & -dim)
    rows = divisor if divisor >= 8 else most
    return rows, max(1, min(8, rows * cols // (32 * PER_THREAD)))
