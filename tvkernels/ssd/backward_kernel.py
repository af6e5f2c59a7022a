"""The scan's backward on Triton, from the inputs alone: its stages and their plan. No atomics.

    cumsum         chunk_cumsum: delta, and its log2-decays summed from each chunk's start
    gate           dy = dout silu(z), only with a gate z
    state_passing  the states before the chunks, the gradients behind them
    roles          dx, dCB, dD, the parts of dB and dC through the states, sums within a chunk
    dz             only with a gate
    bmm            dB and dC: those parts plus the dots of dCB with C and B
    ddt            ddt, dA, ddt_bias from the gradient of the log-decay

Each is a kernel scan_backward_<name>_kernel, in a file with its launcher. Without a gate dy is
dout; with one, dy lies in the memory of dz (if the dtypes are the same), so dz is computed last.

Every path from a token before t to one at or behind t passes the log-decay l_t, so its gradient is
a sum over paths. They are divided by where they begin and end: before and behind the chunk
(paths_through), before and inside it (paths_in), inside and behind it (paths_out), both inside it
(paths_inside). Each is a sum of its own terms over at most a chunk, never a difference of large
sums.

Memory while it runs, per token of 128 heads of 80, 8 groups, d_state 128, 16 bit: states and their
gradients 41 kB, dB and dC in float32 8.2, vectors 4, dCB 2. A gate adds nothing if z has the dtype
of x. Nothing is kept from the forward.

On 132 processors with one program each (registers allow no more): state_passing is 64 pairs of
heads in two directions, 128 programs at batch 1 and 1,024 at batch 8, each through all chunks of
128 tokens. roles has 5 programs (for each of 8 groups) per chunk, 640 at 2k tokens and 10,240
at 32k. So short or narrow inputs wait for state_passing: 16 sequential iterations at 2k tokens.
"""

from dataclasses import dataclass

import torch
import triton

from tvkernels.core.tl import accumulator
from tvkernels.ssd.backward_bmm_kernel import bmm_backward
from tvkernels.ssd.backward_chunk_scan_kernel import chunk_scan_backward, dz_backward
from tvkernels.ssd.backward_cumsum_kernel import chunk_cumsum, chunk_cumsum_backward
from tvkernels.ssd.backward_gate_kernel import gate_backward
from tvkernels.ssd.backward_state_passing_kernel import state_passing

CHUNK = 128
BLOCK = 64
# A GPU whose blocks have less shared memory than this many bytes takes heads of a limited size. RTX
# GPUs have 99 KiB, data centre GPUs at least 163
AMPLE = 160 * 1024


@dataclass
class Plan:
    """How the tokens are divided, and what the launches share."""

    chunk_size: int
    block: int
    """tokens of a query block of a chunk"""
    block_dstate: int
    """d_state padded to a power of two"""
    chunks: int
    bounds: torch.Tensor | None
    """(chunks + 1,) where the chunks begin and end, unless every chunk has chunk_size tokens"""
    resets: torch.Tensor | None
    """(batch, seqlen) int32: resets of the state up to each token"""
    dot_dtype: torch.dtype
    """of dot operands"""
    dtype: torch.dtype
    """of sums"""
    delta: torch.Tensor
    """(batch, nheads, pitch) as all vectors; pitch is seqlen rounded up to whole chunks"""
    cumsum: torch.Tensor
    """(1 or 2, batch, nheads, pitch): high, and if two_floats low part"""

    @property
    def acc(self):
        return accumulator(self.dtype)

    @property
    def pitch(self):
        return self.delta.shape[2]

    @property
    def two_floats(self):
        return self.dot_dtype == torch.float32


def scan_backward(
    x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit,
    dout, dfinal_states, dvarlen_states,
):  # fmt: skip
    """Gradients of x, dt, A, B, C, D, z, dt_bias and initial_states; None where one is not given.

    Args: as `mamba_chunk_scan_combined`, then the gradients of its results; None for states that
        were not asked for.
    """
    how = (dt_softplus, dt_limit)
    check_backward_size(x, B, C)
    if not x.shape[1]:
        # without tokens the varlen states are constant 0
        dvarlen_states = None
    if dvarlen_states is None or seq_idx is not None:
        return _scan_backward(
            x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, *how,
            dout, dfinal_states, dvarlen_states,
        )  # fmt: skip
    # without seq_idx the varlen states are those of another scan, which resets at each sequence
    whole = _scan_backward(
        x, dt, A, B, C, D, z, dt_bias, initial_states, None, None, *how, dout, dfinal_states, None
    )
    tokens = torch.arange(x.shape[1], device=x.device, dtype=cu_seqlens.dtype)
    sequence = torch.bucketize(tokens, cu_seqlens[1:], right=True)[None]
    none = torch.zeros((), dtype=dout.dtype, device=x.device).expand(dout.shape)
    varlen = _scan_backward(
        x, dt, A, B, C, None, None, dt_bias, initial_states, sequence, cu_seqlens, *how,
        none, None, dvarlen_states,
    )  # fmt: skip
    return tuple(a if b is None else a + b for a, b in zip(whole, varlen))


def check_backward_size(x, B, C):
    """Refuse a head that does not fit in the shared memory of the GPU of x, before any launch."""
    headdim, d_state, dot_dtype = x.shape[3], B.shape[3], _dot_dtype(x, B, C)
    most = 512 if dot_dtype.itemsize == 2 else 256
    if max(headdim, d_state) <= most and headdim * d_state <= 256 * 256:
        return
    shared = shared_memory(x.device)
    if shared < AMPLE:
        raise NotImplementedError(
            f"mamba_chunk_scan_combined: with {shared // 1024} KiB of shared memory in a block "
            f"Triton's backward has headdim and d_state up to {most} and headdim * d_state up to "
            f"{256 * 256} for {str(dot_dtype)[6:]}, got {headdim} and {d_state}; "
            'use_backend("reference") has any, torch.no_grad() needs no backward'
        )


def shared_memory(device):
    """Bytes that a block may have; in the interpreter more than enough."""
    if device.type != "cuda":
        return 1 << 30
    properties = torch.cuda.get_device_properties(device)
    # ROCm has one limit; CUDA's larger one is opted in to, as Triton does
    plain = properties.shared_memory_per_block
    return getattr(properties, "shared_memory_per_block_optin", plain)


def _scan_backward(
    x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit,
    dout, dfinal_states, dvarlen_states,
):  # fmt: skip
    plan, ending = _plan(x, B, C, seq_idx, cu_seqlens, dvarlen_states)
    if plan.resets is not None:
        tokens, at_ends = (x, dt, B, C, z, dout), (initial_states, dfinal_states, dvarlen_states)
        plan.resets = _marked(plan.resets, tokens, *at_ends, cu_seqlens)
    bias = None if dt_bias is None else dt_bias.contiguous()
    steps = (dt, A, bias, dt_softplus, tuple(float(limit) for limit in dt_limit))
    chunk_cumsum(plan, *steps)
    dy, dz = (dout, None) if z is None else gate_backward(plan, z, dout, x.dtype)
    states, dstates, dinitial = state_passing(
        plan, x, dy, B, C, initial_states, dfinal_states, dvarlen_states, ending
    )
    dx, sums = chunk_scan_backward(plan, x, dy, B, C, D, states, dstates)
    if z is not None:
        dz_backward(plan, x, B, C, D, z, dout, states, dz)
    dB, dC = bmm_backward(plan, B, C, sums)
    ddt, dA, ddt_bias = chunk_cumsum_backward(plan, *steps, sums)
    dD = None if D is None else sums.dD.sum((0, 1)).view(D.shape).to(D.dtype)
    if plan.resets is not None:
        spoilt = plan.resets < 0
        nothing = torch.where(spoilt.any(), float("nan"), 0.0)
        dA, ddt_bias, dD = (t if t is None else t + nothing.to(t.dtype) for t in (dA, ddt_bias, dD))
        if dinitial is not None:
            dinitial = dinitial.masked_fill(spoilt[:, 0, None, None, None], float("nan"))
    ddt_bias = None if dt_bias is None else ddt_bias.to(dt_bias.dtype)
    return dx, ddt, dA.to(A.dtype), dB, dC, dD, dz, ddt_bias, dinitial


def _plan(x, B, C, seq_idx, cu_seqlens, dvarlen_states):
    """The plan, and for each chunk the sequence that ends with it or -1 (None without states)."""
    batch, seqlen, nheads, _ = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    dot_dtype = _dot_dtype(x, B, C)
    block_dstate = max(16, triton.next_power_of_2(B.shape[3]))
    chunk_size = _chunk_size(x.shape[3], block_dstate, dot_dtype)
    chunks, bounds, ending, resets = triton.cdiv(seqlen, chunk_size), None, None, None
    if dvarlen_states is not None:
        bounds, ending = _chunks_of_sequences(cu_seqlens, seqlen, chunk_size)
        chunks = ending.shape[0]
    if seq_idx is not None and seqlen:
        reset = seq_idx[:, 1:] != seq_idx[:, :-1]
        resets = torch.nn.functional.pad(reset, (1, 0)).cumsum(1, dtype=torch.int32)
    vectors = (batch, nheads, chunk_size * triton.cdiv(seqlen, chunk_size))
    parts = 2 if dot_dtype == torch.float32 else 1
    delta = torch.empty(vectors, dtype=dtype, device=x.device)
    cumsum = torch.empty((parts, *vectors), dtype=dtype, device=x.device)
    plan = Plan(
        chunk_size,
        min(BLOCK, chunk_size),
        block_dstate,
        chunks,
        bounds,
        resets,
        dot_dtype,
        dtype,
        delta,
        cumsum,
    )
    return plan, ending


def _dot_dtype(x, B, C):
    return torch.promote_types(torch.promote_types(x.dtype, B.dtype), C.dtype)


def _chunk_size(headdim, block_dstate, dot_dtype):
    """Tokens of a chunk: few where a head is large, so that tiles fit in 99 KiB."""
    if block_dstate > 256:
        return 16
    narrow = dot_dtype.itemsize == 2
    return CHUNK if narrow and block_dstate <= 128 and headdim <= 256 else BLOCK


def _marked(resets, tokens, initial_states, dfinal_states, dvarlen_states, cu_seqlens):
    """resets, where -2 - n stands for n in each sequence with NaN or infinity: in its tokens, in
    the state before or behind it, or in their gradients."""

    def is_hurt(values, kept):
        dims = tuple(range(kept, values.ndim))
        return ~values.sum(dims, dtype=torch.promote_types(values.dtype, torch.float32)).isfinite()

    hurt = torch.zeros_like(resets)
    for values in tokens:
        if values is not None:
            hurt |= is_hurt(values, 2)
    for values, token in ((initial_states, 0), (dfinal_states, -1)):
        if values is not None:
            hurt[:, token] |= is_hurt(values, 1)
    if dvarlen_states is not None:
        last, filled = (cu_seqlens[1:].long() - 1).clamp_min(0), cu_seqlens.diff() > 0
        hurt[0].scatter_reduce_(0, last, (is_hurt(dvarlen_states, 1) & filled).int(), "amax")
    sequence = resets.long()
    hurt = torch.zeros_like(resets).scatter_reduce_(1, sequence, hurt, "amax").gather(1, sequence)
    return torch.where(hurt > 0, -2 - resets, resets)


def _chunks_of_sequences(cu_seqlens, seqlen, chunk_size):
    """Bounds of chunks of at most chunk_size tokens, none of which crosses a sequence's end, and
    the sequence that ends with each chunk, or -1. Their number does not depend on the values."""
    device = cu_seqlens.device
    number = torch.arange(cu_seqlens.shape[0] - 1, device=device)
    grid = torch.arange(0, seqlen + chunk_size, chunk_size, device=device).clamp_max(seqlen)
    bounds = torch.cat([grid, cu_seqlens[1:].long()])
    ending = torch.where(cu_seqlens.diff() > 0, number, -1)
    bounds, order = bounds.sort(stable=True)
    ending = torch.cat([torch.full_like(grid, -1), ending])[order]
    return bounds, ending[1:].contiguous()
