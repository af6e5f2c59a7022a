"""roles and dz of the backward: all gradients of what happens within a chunk.

One program computes one role for one chunk and the heads of one group. With tokens i and j, M_ij =
dy_i . x_j, CB_ij = C_i . B_j, L_ij the decay from j to i, S the state before the chunk and dS the
gradient behind it, the roles are

    dC    sum over heads of decay_from_start_i S dy_i;  per head its dot with C_i (paths_in), and
          chunk_decay <dS, S> (paths_through)
    dB    sum over heads of decay_to_end_j delta_j dS x_j;  per head its dot with B_j, without
          delta_j (paths_out)
    dx    delta_j (sum_i CB_ij L_ij dy_i + decay_to_end_j dS^T B_j) + D dy_j
    dCB   sum over heads of L_ij delta_j M_ij;  per head the sums of CB o L o M over rows and over
          columns (ddelta_later, ddelta_self, paths_inside), and dD
    dz    dout_i silu'(z_i) (sum_j CB_ij L_ij delta_j x_j + decay_from_start_i S^T C_i + D x_i)

backward_kernel.py says how the paths become the gradient of the log-decay. Sums over heads stay in
one program, so there are no atomics. Scales are applied to float32 results, delta and D to the tile
that multiplies dy, so x and dy go from memory to a dot as they are. dz has a launch of its own
after the others, because it overwrites dy, which they read.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import strides
from tvkernels.core.tune import tuned
from tvkernels.ssd.backward_chunk_scan_device import dbc_role, dCB_role, dx_or_dz_role
from tvkernels.ssd.backward_device import bounds_of, configs, count_tiles

# a program's role by its number within its chunk and group. Behind these two come the blocks of
# role dx (several for a D per channel, which needs dy in registers too), then those of role dCB
ROLE_DC, ROLE_DB = tl.constexpr(0), tl.constexpr(1)


class Sums(NamedTuple):
    """What the roles leave behind, in the order of the kernel's arguments."""

    dB: torch.Tensor
    """(batch, seqlen, ngroups, d_state), the part through the states; dC likewise"""
    dC: torch.Tensor
    dCB: torch.Tensor
    """(batch, chunks, ngroups, chunk_size, chunk_size), the gradient of C B^T, transposed"""
    dD: torch.Tensor
    """(batch, chunks * query blocks, nheads, 1 or headdim)"""
    paths_in: torch.Tensor
    """(batch, nheads, pitch), as the next three: paths from before the chunk that end at a token"""
    paths_out: torch.Tensor
    """those that begin at a token and leave the chunk, without the token's delta"""
    ddelta_self: torch.Tensor
    """gradient of delta from the token's own output"""
    paths_inside: torch.Tensor
    """those within the chunk that end at a token; if TWO_FLOATS, those that pass over it"""
    ddelta_later: torch.Tensor
    """(query blocks, batch, nheads, pitch), gradient of delta from later outputs of the chunk"""
    paths_through: torch.Tensor
    """(batch, chunks, nheads): paths that begin before the chunk and end behind it"""


# four warps have no registers for a tile of 128 tokens, and sm_120 and gfx942 no shared memory for
# a second stage; without one sm_90 spills in its loops
CONFIGS = configs(
    {"default": ((8, 1),), "gfx942": ((8, 1),), "sm_90": ((8, 2),)}
    | dict.fromkeys(("sm_80", "sm_100"), ((8, 2), (8, 1)))
)


@tuned(CONFIGS, key=["HEADDIM", "D_STATE", "CHUNK_SIZE"])
@triton.jit(do_not_specialize=["seqlen", "chunks"])
def scan_backward_roles_kernel(
    x_ptr, dy_ptr, B_ptr, C_ptr, D_ptr, states_ptr, dstates_ptr, delta_ptr, cumsum_ptr, resets_ptr,
    bounds_ptr, dx_ptr, dB_ptr, dC_ptr, dCB_ptr, dD_ptr, paths_in_ptr, paths_out_ptr,
    ddelta_self_ptr, paths_inside_ptr, ddelta_later_ptr, paths_through_ptr, seqlen, pitch, chunks,
    nheads, heads_per_group, low_offset: tl.int64, x_batch: tl.int64, x_token, x_head, x_channel,
    dy_batch: tl.int64, dy_token, dy_head, dy_channel, B_batch: tl.int64, B_token, B_group,
    B_dstate, C_batch: tl.int64, C_token, C_group, C_dstate, D_head, D_channel,
    HEADDIM: tl.constexpr, TILES: tl.constexpr, D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr,
    CHUNK_SIZE: tl.constexpr, BLOCK_QUERIES: tl.constexpr, D_PER_CHANNEL: tl.constexpr,
    TWO_FLOATS: tl.constexpr, ACC: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns one role of one chunk of one group; its neighbours own the other roles
    QUERY_BLOCKS: tl.constexpr = CHUNK_SIZE // BLOCK_QUERIES
    DX_BLOCKS: tl.constexpr = QUERY_BLOCKS if D_PER_CHANNEL else 1
    groups, slots = nheads // heads_per_group, 2 + DX_BLOCKS + QUERY_BLOCKS
    role, place = tl.program_id(0) % slots, (tl.program_id(0) // slots).to(tl.int64)
    group, chunk, batch = place % groups, place // groups % chunks, place // groups // chunks
    head = group * heads_per_group
    start, stop = bounds_of(bounds_ptr, chunk, seqlen, CHUNK_SIZE)
    number, vectors = batch * chunks + chunk, (batch * nheads + head) * pitch
    delta_ptr, cumsum_ptr = delta_ptr + vectors, cumsum_ptr + vectors
    x_ptr = x_ptr + batch * x_batch + head * x_head
    dy_ptr = dy_ptr + batch * dy_batch + head * dy_head
    B_ptr += batch * B_batch + group * B_group
    C_ptr += batch * C_batch + group * C_group
    state = (number * nheads + head) * HEADDIM * D_STATE
    states_ptr, dstates_ptr = states_ptr + state, dstates_ptr + state
    sums, dbc_token = (batch * seqlen * groups + group) * D_STATE, groups * D_STATE
    rows, row_token = (batch * seqlen * nheads + head) * HEADDIM, nheads * HEADDIM
    if resets_ptr is not None:
        resets_ptr += batch * seqlen
    if role == ROLE_DC:
        dbc_role(
            dy_ptr, C_ptr, states_ptr, dstates_ptr, delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr,
            paths_in_ptr + vectors, paths_through_ptr + number * nheads + head, dC_ptr + sums,
            start, stop, pitch, low_offset, heads_per_group, dy_token, dy_head, dy_channel, C_token,
            C_dstate, dbc_token, IS_DC=True, HEADDIM=HEADDIM, TILES=TILES, D_STATE=D_STATE,
            BLOCK_DSTATE=BLOCK_DSTATE, CHUNK_SIZE=CHUNK_SIZE, TWO_FLOATS=TWO_FLOATS, ACC=ACC,
            DOT_PRECISION=DOT_PRECISION,
        )  # fmt: skip
    elif role == ROLE_DB:
        dbc_role(
            x_ptr, B_ptr, dstates_ptr, states_ptr, delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr,
            paths_out_ptr + vectors, paths_through_ptr, dB_ptr + sums, start, stop, pitch,
            low_offset, heads_per_group, x_token, x_head, x_channel, B_token, B_dstate, dbc_token,
            IS_DC=False, HEADDIM=HEADDIM, TILES=TILES, D_STATE=D_STATE, BLOCK_DSTATE=BLOCK_DSTATE,
            CHUNK_SIZE=CHUNK_SIZE, TWO_FLOATS=TWO_FLOATS, ACC=ACC, DOT_PRECISION=DOT_PRECISION,
        )  # fmt: skip
    elif role < 2 + DX_BLOCKS:
        dx_or_dz_role(
            dy_ptr, B_ptr, C_ptr, dstates_ptr, D_ptr, delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr,
            dx_ptr + rows, role - 2, start, stop, pitch, low_offset, heads_per_group,
            dy_token, dy_head, dy_channel, B_token, B_dstate, C_token, C_dstate, head, D_head,
            D_channel, row_token, IS_DX=True, BLOCK_TOKENS=CHUNK_SIZE // DX_BLOCKS,
            HEADDIM=HEADDIM, TILES=TILES, D_STATE=D_STATE, BLOCK_DSTATE=BLOCK_DSTATE,
            CHUNK_SIZE=CHUNK_SIZE, D_PER_CHANNEL=D_PER_CHANNEL, TWO_FLOATS=TWO_FLOATS, ACC=ACC,
            DOT_PRECISION=DOT_PRECISION,
        )  # fmt: skip
    else:
        block = (role - 2 - DX_BLOCKS).to(tl.int64)
        row = (number * QUERY_BLOCKS + block) * nheads + head
        dD_ptr += row * (HEADDIM if D_PER_CHANNEL else 1)
        dCB_role(
            x_ptr, dy_ptr, B_ptr, C_ptr, delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr,
            dCB_ptr + (number * groups + group) * CHUNK_SIZE * CHUNK_SIZE,
            ddelta_later_ptr + block * low_offset + vectors, ddelta_self_ptr + vectors,
            paths_inside_ptr + vectors, dD_ptr, block, start, stop, pitch, low_offset,
            heads_per_group, x_token, x_head, x_channel, dy_token, dy_head, dy_channel, B_token,
            B_dstate, C_token, C_dstate, HEADDIM, TILES, D_STATE, BLOCK_DSTATE, CHUNK_SIZE,
            BLOCK_QUERIES, D_PER_CHANNEL, TWO_FLOATS, states_ptr.dtype.element_ty, ACC,
            DOT_PRECISION,
        )  # fmt: skip


@tuned(CONFIGS, key=["HEADDIM", "D_STATE", "CHUNK_SIZE"])
@triton.jit(do_not_specialize=["seqlen", "chunks"])
def scan_backward_dz_kernel(
    x_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dout_ptr, states_ptr,
    delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr, dz_ptr,
    seqlen, pitch, chunks, nheads, heads_per_group, low_offset: tl.int64,
    x_batch: tl.int64, x_token, x_head, x_channel,
    B_batch: tl.int64, B_token, B_group, B_dstate, C_batch: tl.int64, C_token, C_group, C_dstate,
    D_head, D_channel, z_batch: tl.int64, z_token, z_head, z_channel,
    dout_batch: tl.int64, dout_token, dout_head, dout_channel,
    HEADDIM: tl.constexpr, TILES: tl.constexpr, D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr,
    CHUNK_SIZE: tl.constexpr, BLOCK_QUERIES: tl.constexpr, TWO_FLOATS: tl.constexpr,
    ACC: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns role dz of one block of tokens of one chunk of one group
    QUERY_BLOCKS: tl.constexpr = CHUNK_SIZE // BLOCK_QUERIES
    groups = nheads // heads_per_group
    block, place = tl.program_id(0) % QUERY_BLOCKS, (tl.program_id(0) // QUERY_BLOCKS).to(tl.int64)
    group, chunk, batch = place % groups, place // groups % chunks, place // groups // chunks
    head = group * heads_per_group
    start, stop = bounds_of(bounds_ptr, chunk, seqlen, CHUNK_SIZE)
    vectors = (batch * nheads + head) * pitch
    state = ((batch * chunks + chunk) * nheads + head) * HEADDIM * D_STATE
    if resets_ptr is not None:
        resets_ptr += batch * seqlen
    dx_or_dz_role(
        x_ptr + batch * x_batch + head * x_head, C_ptr + batch * C_batch + group * C_group,
        B_ptr + batch * B_batch + group * B_group, states_ptr + state, D_ptr, delta_ptr + vectors,
        cumsum_ptr + vectors, resets_ptr, bounds_ptr,
        dz_ptr + (batch * seqlen * nheads + head) * HEADDIM,
        block, start, stop, pitch, low_offset, heads_per_group, x_token, x_head, x_channel, C_token,
        C_dstate, B_token, B_dstate, head, D_head, D_channel, nheads * HEADDIM,
        IS_DX=False, BLOCK_TOKENS=BLOCK_QUERIES, HEADDIM=HEADDIM, TILES=TILES, D_STATE=D_STATE,
        BLOCK_DSTATE=BLOCK_DSTATE, CHUNK_SIZE=CHUNK_SIZE, D_PER_CHANNEL=True,
        TWO_FLOATS=TWO_FLOATS, ACC=ACC, DOT_PRECISION=DOT_PRECISION,
        z_ptr=z_ptr + batch * z_batch + head * z_head, z_token=z_token, z_head=z_head,
        z_channel=z_channel, dout_ptr=dout_ptr + batch * dout_batch + head * dout_head,
        dout_token=dout_token, dout_head=dout_head, dout_channel=dout_channel,
    )  # fmt: skip


def chunk_scan_backward(plan, x, dy, B, C, D, states, dstates):
    """dx and the roles' Sums."""
    batch, seqlen, nheads, headdim = x.shape
    groups, d_state = B.shape[2:]

    def empty(*shape, dtype=plan.dtype):
        return torch.empty(shape, dtype=dtype, device=x.device)

    dx = empty(*x.shape, dtype=x.dtype)
    per_channel = D is not None and D.ndim == 2
    blocks, vectors = plan.chunk_size // plan.block, (batch, nheads, plan.pitch)
    dCB = (batch, plan.chunks, groups, plan.chunk_size, plan.chunk_size)
    sums = Sums(
        dB=empty(batch, seqlen, groups, d_state),
        dC=empty(batch, seqlen, groups, d_state),
        dCB=empty(*dCB, dtype=plan.dot_dtype),
        dD=empty(batch, plan.chunks * blocks, nheads, headdim if per_channel else 1),
        paths_in=empty(*vectors),
        paths_out=empty(*vectors),
        ddelta_self=empty(*vectors),
        paths_inside=empty(*vectors),
        ddelta_later=empty(blocks, *vectors),
        paths_through=empty(batch, plan.chunks, nheads),
    )
    slots = 2 + (blocks if per_channel else 1) + blocks
    if x.numel():
        scan_backward_roles_kernel[(slots * groups * plan.chunks * batch,)](
            x, dy, B, C, D, states, dstates,
            plan.delta, plan.cumsum, plan.resets, plan.bounds, dx, *sums,
            seqlen, plan.pitch, plan.chunks, nheads, nheads // groups, plan.delta.numel(),
            *x.stride(), *dy.stride(), *B.stride(), *C.stride(), *_strides_of_D(D),
            D_PER_CHANNEL=per_channel, **_sizes(plan, x, B),
        )  # fmt: skip
    return dx, sums


def dz_backward(plan, x, B, C, D, z, dout, states, dz):
    """Fills dz."""
    batch, nheads, groups = x.shape[0], x.shape[2], B.shape[2]
    if x.numel():
        blocks = plan.chunk_size // plan.block
        scan_backward_dz_kernel[(blocks * groups * plan.chunks * batch,)](
            x, B, C, D, z, dout, states, plan.delta, plan.cumsum, plan.resets, plan.bounds, dz,
            x.shape[1], plan.pitch, plan.chunks, nheads, nheads // groups, plan.delta.numel(),
            *x.stride(), *B.stride(), *C.stride(), *_strides_of_D(D), *z.stride(),
            *dout.stride(), **_sizes(plan, x, B),
        )  # fmt: skip


def _strides_of_D(D):
    """Strides of heads and channels; 0 where all share a value."""
    return (*strides(D, 1), 0) if D is None or D.ndim == 1 else D.stride()


def _sizes(plan, x, B):
    """Constexprs of both kernels."""
    headdim, d_state = x.shape[3], B.shape[3]
    return {
        "HEADDIM": headdim, "TILES": count_tiles(headdim), "D_STATE": d_state,
        "BLOCK_DSTATE": plan.block_dstate, "CHUNK_SIZE": plan.chunk_size,
        "BLOCK_QUERIES": plan.block, "TWO_FLOATS": plan.two_floats, "ACC": plan.acc,
    }  # fmt: skip
