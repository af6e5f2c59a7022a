"""bmm of the backward: dB and dC from dCB, added to their parts through the states."""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import dot
from tvkernels.core.tune import tuned
from tvkernels.ssd.backward_device import bounds_of, configs, is_sound, load_bc, reached, spoil

CONFIGS = configs({"default": ((8, 2),), "gfx942": ((8, 2), (4, 2))})


@tuned(CONFIGS, key=["D_STATE", "CHUNK_SIZE"])
@triton.jit(do_not_specialize=["seqlen", "chunks"])
def scan_backward_bmm_kernel(
    dCB_ptr, B_ptr, C_ptr, dB_state_ptr, dC_state_ptr, dB_ptr, dC_ptr, resets_ptr, bounds_ptr,
    seqlen, chunks, groups,
    B_batch: tl.int64, B_token, B_group, B_dstate, C_batch: tl.int64, C_token, C_group, C_dstate,
    D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr, CHUNK_SIZE: tl.constexpr,
    ACC: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns dB and dC of one group of one chunk
    DOT_DTYPE: tl.constexpr = dCB_ptr.dtype.element_ty
    place = tl.program_id(0).to(tl.int64)
    group, chunk, batch = place % groups, place // groups % chunks, place // groups // chunks
    start, stop = bounds_of(bounds_ptr, chunk, seqlen, CHUNK_SIZE)
    t = start + tl.arange(0, CHUNK_SIZE).to(tl.int64)
    n = tl.arange(0, BLOCK_DSTATE).to(tl.int64)
    mask = (t < stop)[:, None] & (n < D_STATE)[None, :]
    at = (((batch * seqlen + t) * groups + group) * D_STATE)[:, None] + n[None, :]
    key, query = tl.arange(0, CHUNK_SIZE)[:, None], tl.arange(0, CHUNK_SIZE)[None, :]
    if resets_ptr is not None:
        resets_ptr += batch * seqlen
    sound = is_sound(resets_ptr, t, stop)
    dCB = tl.load(dCB_ptr + place * CHUNK_SIZE * CHUNK_SIZE + key * CHUNK_SIZE + query)
    dCB = tl.where(reached(resets_ptr, start, stop, key, query), dCB, 0.0).to(DOT_DTYPE)
    C_ptr += batch * C_batch + group * C_group
    total = tl.load(dB_state_ptr + at, mask=mask, other=0.0)
    C = load_bc(C_ptr, t, sound, C_token, C_dstate, D_STATE, BLOCK_DSTATE, DOT_DTYPE)
    total = dot(dCB, C, total, DOT_PRECISION)
    total = spoil(total, sound[:, None], resets_ptr)
    tl.store(dB_ptr + at, total.to(dB_ptr.dtype.element_ty), mask=mask)
    B_ptr += batch * B_batch + group * B_group
    total = tl.load(dC_state_ptr + at, mask=mask, other=0.0)
    B = load_bc(B_ptr, t, sound, B_token, B_dstate, D_STATE, BLOCK_DSTATE, DOT_DTYPE)
    total = dot(tl.trans(dCB), B, total, DOT_PRECISION)
    total = spoil(total, sound[:, None], resets_ptr)
    tl.store(dC_ptr + at, total.to(dC_ptr.dtype.element_ty), mask=mask)


def bmm_backward(plan, B, C, sums):
    """dB and dC, of the roles' sums."""
    batch, seqlen, groups, d_state = B.shape
    dB = torch.empty(B.shape, dtype=B.dtype, device=B.device)
    dC = torch.empty(C.shape, dtype=C.dtype, device=C.device)
    if batch and seqlen:
        scan_backward_bmm_kernel[(groups * plan.chunks * batch,)](
            sums.dCB, B, C, sums.dB, sums.dC, dB, dC, plan.resets, plan.bounds, seqlen, plan.chunks,
            groups, *B.stride(), *C.stride(), D_STATE=d_state, BLOCK_DSTATE=plan.block_dstate,
            CHUNK_SIZE=plan.chunk_size, ACC=plan.acc,
        )  # fmt: skip
    return dB, dC
