"""The Mamba-2 scan in plain PyTorch: token by token as the oracle, and the faster chunked form.

    delta_t = clamp(softplus(dt_t + dt_bias)),    l_t = delta_t A
    S_t = exp(l_t) S_{t-1} + delta_t x_t B_t^T,    out_t = (S_t C_t + D x_t) silu(z_t)

Source: Dao & Gu 2024 (arXiv 2405.21060); arguments and results of mamba-ssm 2.3.2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tvkernels.ssd.segments_reference import ChunkScan

__all__ = ["mamba_chunk_scan_combined_ref", "mamba_recurrence_ref"]

# the least log-decay: its exp is 0, and a sum of as many as a chunk has tokens is finite
LEAST = -1e30

Result = Tensor | tuple[Tensor, ...]


def mamba_chunk_scan_combined_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Result:
    """`mamba_chunk_scan_combined` in plain PyTorch; arguments and result are the same.

    Chunks of 32 tokens, whatever chunk_size says; memory linear in seqlen, no tensor with both a
    sequence and a state dimension. NaN and infinity are what the recurrence gives (token by token
    from the first one on); on a device other than the CPU, what they reach is NaN. seq_idx and
    cu_seqlens are read on the host.
    """
    delta = _step_sizes(x, dt, dt_bias, dt_softplus, dt_limit)
    log_decay = delta * A.to(delta.dtype)
    # not clamp_min, whose gradient at NaN is 0
    log_decay = torch.where(log_decay < LEAST, LEAST, log_decay)
    state = _columns(_first_state(x, B, initial_states, delta.dtype), B.shape[2])
    inputs = (x, delta, log_decay, B, C)
    per_channel = None if D is None else _per_channel(D, x, delta.dtype)
    ends = cu_seqlens if return_varlen_states and seq_idx is not None else None
    out, last, after = ChunkScan.apply(*inputs, per_channel, z, state, seq_idx, ends)
    results = [out]
    if return_final_states:
        results.append(_per_head(last, x))
    if return_varlen_states:
        assert cu_seqlens is not None
        if seq_idx is None:
            sequence = _sequence_of(cu_seqlens, x.shape[1])
            _, _, after = ChunkScan.apply(*inputs, None, None, state, sequence, cu_seqlens)
        results.append(_per_head(after.flatten(0, 1), x).to(C.dtype))
    return results[0] if len(results) == 1 else tuple(results)


def mamba_recurrence_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Result:
    """`mamba_chunk_scan_combined` as the plain recurrence, token by token: the oracle.

    Slow, and memory grows with seqlen times the state when gradients or varlen states are wanted.
    """
    delta = _step_sizes(x, dt, dt_bias, dt_softplus, dt_limit)
    decay = torch.exp(delta * A.to(delta.dtype))
    first = _first_state(x, B, initial_states, delta.dtype)
    heads_per_group = x.shape[2] // B.shape[2]

    def states_after(sequence_of: Tensor | None) -> list[Tensor]:
        state, states = first, [first]
        for t in range(x.shape[1]):
            if sequence_of is not None and t > 0:
                same = sequence_of[:, t] == sequence_of[:, t - 1]
                state = torch.where(same[:, None, None, None], state, 0.0)
            b = B[:, t].to(delta.dtype).repeat_interleave(heads_per_group, dim=1)
            step = delta[:, t, :, None] * x[:, t]
            state = decay[:, t, :, None, None] * state + step[..., None] * b[:, :, None]
            states.append(state)
        return states

    states = states_after(seq_idx)
    c = C.to(delta.dtype).repeat_interleave(heads_per_group, dim=2)
    # not a matmul: autocast would cast it to 16 bit
    rows = [(state * c[:, t, :, None]).sum(-1) for t, state in enumerate(states[1:])]
    y = torch.stack(rows, dim=1) if rows else torch.zeros_like(x, dtype=delta.dtype)
    if D is not None:
        y = y + x * _per_channel(D, x, delta.dtype)
    if z is not None:
        y = y * F.silu(z.to(delta.dtype))
    results = [y.to(x.dtype)]
    if return_final_states:
        results.append(states[-1])
    if return_varlen_states:
        assert cu_seqlens is not None
        if seq_idx is None:
            states = states_after(_sequence_of(cu_seqlens, x.shape[1]))
        ends = torch.stack(states)[:, 0].index_select(0, cu_seqlens[1:])
        filled = (cu_seqlens.diff() > 0)[:, None, None, None]
        results.append(torch.where(filled, ends, 0.0).to(C.dtype))
    return results[0] if len(results) == 1 else tuple(results)


def _step_sizes(
    x: Tensor,
    dt: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> Tensor:
    """delta (batch, seqlen, nheads), in the dtype of the computation."""
    delta = dt.to(torch.promote_types(x.dtype, torch.float32))
    if dt_bias is not None:
        delta = delta + dt_bias.to(delta.dtype)
    if dt_softplus:
        delta = F.softplus(delta)
    # not clamp, whose gradient at NaN is 0
    least, greatest = dt_limit
    delta = torch.where(delta < least, least, delta)
    return torch.where(delta > greatest, greatest, delta)


def _first_state(x: Tensor, B: Tensor, initial_states: Tensor | None, dtype: torch.dtype) -> Tensor:
    """initial_states or zeros (batch, nheads, headdim, d_state)."""
    if initial_states is not None:
        return initial_states.to(dtype)
    shape = (x.shape[0], *x.shape[2:], B.shape[3])
    return torch.zeros(shape, dtype=dtype, device=x.device)


def _per_channel(D: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """D per head or per channel as (nheads, headdim)."""
    return (D if D.ndim == 2 else D[:, None]).to(dtype).expand(x.shape[2:])


def _sequence_of(cu_seqlens: Tensor, seqlen: int) -> Tensor:
    """The sequence number of each token (1, seqlen)."""
    tokens = torch.arange(seqlen, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.bucketize(tokens, cu_seqlens[1:], right=True)[None]


def _columns(state: Tensor, ngroups: int) -> Tensor:
    """(batch, nheads, headdim, d_state) as (batch * ngroups, d_state, columns)."""
    return state.unflatten(1, (ngroups, -1)).permute(0, 1, 4, 2, 3).flatten(3).flatten(0, 1)


def _per_head(columns: Tensor, x: Tensor) -> Tensor:
    """The inverse of `_columns`, for the heads and channels of x; with any number of states."""
    nheads, headdim = x.shape[2:]
    heads = columns.unflatten(-1, (-1, headdim)).permute(0, 2, 3, 1)
    return heads.unflatten(0, (-1, nheads // heads.shape[1])).flatten(1, 2)
