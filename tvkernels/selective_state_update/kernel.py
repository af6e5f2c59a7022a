"""The decode step on Triton: the state is read once and written once, in place.

Shapes: state (rows, nheads, dim, dstate), x, dt, z and out (batch, nheads, dim), A (nheads, dim,
dstate), B and C (batch, ngroups, dstate), D and dt_bias (nheads, dim), each by any strides. Almost
all memory traffic is the state, so programs are small enough that one sequence fills a GPU: 128
heads of 80 channels are 640 programs of 16 channels. Sums are float32 (float64 for float64). Not
tuned: timing would repeat a launch that writes in place.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, softplus, state_step, strides

# elements of the state that a program holds, and that each of its threads holds
TILE, PER_THREAD = 2048, 16


@triton.jit
def state_update_kernel(
    state_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dt_bias_ptr, indices_ptr, out_ptr,
    nheads, dim, dstate, heads_per_group,
    state_row, state_head, state_dim, state_dstate,
    x_batch, x_head, x_dim, dt_batch, dt_head, dt_dim, A_head, A_dim, A_dstate,
    B_batch, B_group, B_dstate, C_batch, C_group, C_dstate, D_head, D_dim,
    z_batch, z_head, z_dim, dt_bias_head, dt_bias_dim, indices_stride,
    SOFTPLUS: tl.constexpr, DT_PER_HEAD: tl.constexpr,
    BLOCK_DIM: tl.constexpr, BLOCK_DSTATE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_DIM channels of one head of one sequence; its neighbours share B and C
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    first = (tl.program_id(0) % dim_blocks) * BLOCK_DIM
    head = (tl.program_id(0) // dim_blocks) % nheads
    group = (head // heads_per_group).to(tl.int64)
    head = head.to(tl.int64)
    batch = (tl.program_id(0) // dim_blocks // nheads).to(tl.int64)
    channel = first + tl.arange(0, BLOCK_DIM).to(tl.int64)
    n = tl.arange(0, BLOCK_DSTATE).to(tl.int64)
    in_dim, in_dstate = channel < dim, n < dstate
    mask = in_dim[:, None] & in_dstate[None, :]

    row = batch
    if indices_ptr is not None:
        row = tl.load(indices_ptr + batch * indices_stride).to(tl.int64)
    # a negative index is padding: no channel is live
    live = channel < tl.where(row >= 0, dim, 0)
    live_mask = live[:, None] & in_dstate[None, :]
    state_ptr += row * state_row + head * state_head
    at = channel[:, None] * state_dim + n[None, :] * state_dstate
    state = tl.load(state_ptr + at, mask=live_mask, other=0.0).to(ACC)

    dt_ptr += batch * dt_batch + head * dt_head
    A_ptr += head * A_head
    if DT_PER_HEAD:
        # one step size and one decay for the whole head
        dt = tl.load(dt_ptr).to(ACC)
        A = tl.load(A_ptr).to(ACC)
        if dt_bias_ptr is not None:
            dt += tl.load(dt_bias_ptr + head * dt_bias_head).to(ACC)
    else:
        dt = tl.load(dt_ptr + channel * dt_dim, mask=in_dim, other=0.0).to(ACC)[:, None]
        A_at = channel[:, None] * A_dim + n[None, :] * A_dstate
        A = tl.load(A_ptr + A_at, mask=mask, other=0.0).to(ACC)
        if dt_bias_ptr is not None:
            dt_bias_ptr += head * dt_bias_head
            dt_bias = tl.load(dt_bias_ptr + channel * dt_bias_dim, mask=in_dim, other=0.0)
            dt += dt_bias.to(ACC)[:, None]
    if SOFTPLUS:
        dt = softplus(dt)
    x_ptr += batch * x_batch + head * x_head
    x = tl.load(x_ptr + channel * x_dim, mask=in_dim, other=0.0).to(ACC)
    B_ptr += batch * B_batch + group * B_group
    B = tl.load(B_ptr + n * B_dstate, mask=in_dstate, other=0.0).to(ACC)
    C_ptr += batch * C_batch + group * C_group
    C = tl.load(C_ptr + n * C_dstate, mask=in_dstate, other=0.0).to(ACC)

    state, y = state_step(state, x, dt, A, B, C)
    tl.store(state_ptr + at, state.to(state_ptr.dtype.element_ty), mask=live_mask)
    if D_ptr is not None:
        y += x * tl.load(D_ptr + head * D_head + channel * D_dim, mask=in_dim, other=0.0).to(ACC)
    if z_ptr is not None:
        z_ptr += batch * z_batch + head * z_head
        y *= silu(tl.load(z_ptr + channel * z_dim, mask=in_dim, other=0.0).to(ACC))
    y = tl.where(live, y, 0.0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (batch * nheads + head) * dim + channel, y, mask=in_dim)


def state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, indices):
    """out (batch, nheads, dim), contiguous; every tensor has its head dimension."""
    batch, nheads, dim = x.shape
    dstate = state.shape[-1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    block_dstate = triton.next_power_of_2(max(1, dstate))
    block_dim, warps = _block(dim, block_dstate)
    per_head = A.stride()[1:] == (0, 0) and dt.stride(2) == 0 and strides(dt_bias, 2)[1] == 0
    state_update_kernel[(batch * nheads * triton.cdiv(dim, block_dim),)](
        state, x, dt, A, B, C, D, z, dt_bias, indices, out,
        nheads, dim, dstate, nheads // B.shape[1],
        *state.stride(), *x.stride(), *dt.stride(), *A.stride(), *B.stride(), *C.stride(),
        *strides(D, 2), *strides(z, 3), *strides(dt_bias, 2), *strides(indices, 1),
        SOFTPLUS=dt_softplus, DT_PER_HEAD=per_head, BLOCK_DIM=block_dim, BLOCK_DSTATE=block_dstate,
        ACC=accumulator(state.dtype, x.dtype),
        num_warps=warps,
    )  # fmt: skip
    return out


def _block(dim, block_dstate):
    """Channels of a program, a divisor of dim unless that leaves fewer than 8; its warps."""
    most = max(1, min(TILE // block_dstate, triton.next_power_of_2(dim)))
    divisor = min(most, dim & -dim)
    block_dim = divisor if divisor >= 8 else most
    return block_dim, max(1, min(8, block_dim * block_dstate // (32 * PER_THREAD)))
