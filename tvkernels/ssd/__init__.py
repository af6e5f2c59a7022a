"""Mamba-2 state-space duality: the scan of whole sequences, in chunks.

    op.py                               the public op: documentation, checks, autograd
    reference.py                        plain PyTorch: token by token, and chunk by chunk
    segments_reference.py               the chunked form, a sequence at a time; NaN and infinity
    chunked_reference.py                a span of chunks of it, forward and backward
    kernel.py                           forward on Triton: launches, how sequences are divided
    chunk_scan_kernel.py                forward: all stages of a segment in one kernel
    chunk_state_kernel.py               forward: states of subsegments and of packed sequences
    not_finite_kernel.py                forward: tokens one by one where a state is not finite
    device.py                           device functions of the forward
    backward_kernel.py                  backward on Triton: its stages, how tokens are divided
    backward_cumsum_kernel.py           delta and summed log-decays; ddt, dA, ddt_bias
    backward_gate_kernel.py             dy = dout silu(z)
    backward_state_passing_kernel.py    states before the chunks, gradients behind them
    backward_chunk_scan_kernel.py       dx, dCB, dD, parts of dB and dC; dz
    backward_chunk_scan_device.py       device functions of that
    backward_bmm_kernel.py              dB and dC from dCB
    backward_device.py                  device functions of the backward

The stages have mamba-ssm's names:

    chunk_cumsum     delta = clamp(softplus(dt + dt_bias)), running sums of delta A in each chunk
    bmm              C B^T of the tokens of a chunk
    chunk_state      what a chunk's tokens add to the state
    state_passing    the states before the chunks, one after the other
    chunk_scan       out, from C B^T and x within the chunk and from the state before it

Names in the kernels: a chunk is CHUNK_SIZE tokens. A segment is what one program of the forward
goes through, a subsegment a part of it whose state is computed beforehand. A head's channels are
divided into blocks (BLOCK_HEADDIM, one program each) and those into tiles (one dot each).
BLOCK_DSTATE is d_state padded to a power of two. DOT_DTYPE is the dtype of dot operands,
DOT_PRECISION how float32 operands are multiplied, ACC the dtype of accumulators, SUM that of summed
log-decays. `x_batch, x_token, x_head, x_channel` are strides of x; `cumsum` is mamba-ssm's
dA_cumsum in base 2; dX is the gradient of X.
"""

from tvkernels.ssd.op import mamba_chunk_scan_combined

__all__ = ["mamba_chunk_scan_combined"]
