"""The gate of the scan's backward: dy = dout silu(z), the gradient of what the gate multiplies."""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import silu


@triton.jit(do_not_specialize=["rows", "seqlen"])
def scan_backward_gate_kernel(
    z_ptr, dout_ptr, dy_ptr, rows: tl.int64, seqlen, nheads,
    z_batch: tl.int64, z_token, z_head, z_channel, dout_batch: tl.int64, dout_token,
    dout_head, dout_channel,
    HEADDIM: tl.constexpr, BLOCK_HEADDIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_ROWS heads of tokens
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    head, token = (row % nheads)[:, None], (row // nheads % seqlen)[:, None]
    batch = (row // nheads // seqlen)[:, None]
    channel = tl.arange(0, BLOCK_HEADDIM).to(tl.int64)[None, :]
    mask = (row < rows)[:, None] & (channel < HEADDIM)
    at = batch * z_batch + token * z_token + head * z_head + channel * z_channel
    z = tl.load(z_ptr + at, mask=mask, other=0.0).to(ACC)
    at = batch * dout_batch + token * dout_token + head * dout_head + channel * dout_channel
    dy = silu(z) * tl.load(dout_ptr + at, mask=mask, other=0.0).to(ACC)
    tl.store(dy_ptr + row[:, None] * HEADDIM + channel, dy.to(dy_ptr.dtype.element_ty), mask=mask)


def gate_backward(plan, z, dout, dtype):
    """dy, and memory for dz: the same if the dtypes are."""
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    dy = dz if z.dtype == dtype else torch.empty(z.shape, dtype=dtype, device=z.device)
    batch, seqlen, nheads, headdim = z.shape
    block_headdim = triton.next_power_of_2(headdim)
    rows, block_rows = batch * seqlen * nheads, max(1, 2048 // block_headdim)
    if dy.numel():
        scan_backward_gate_kernel[(triton.cdiv(rows, block_rows),)](
            z, dout, dy, rows, seqlen, nheads, *z.stride(), *dout.stride(), HEADDIM=headdim,
            BLOCK_HEADDIM=block_headdim, BLOCK_ROWS=block_rows, ACC=plan.acc, num_warps=4,
        )  # fmt: skip
    return dy, dz
