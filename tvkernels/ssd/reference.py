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

from tvkernels.ssd.chunked_reference import CHUNK, ChunkScan, decays, path_matrix

__all__ = ["mamba_chunk_scan_combined_ref", "mamba_recurrence_ref"]

# log-decay at a reset. Exponents are sums, not differences of running sums, so it erases the state
# before it without a rounding error in later exponents
RESET = -1e30

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
) -> Result:
    """`mamba_chunk_scan_combined` in plain PyTorch; arguments and result are the same.

    Chunks of 32 tokens, whatever chunk_size says; memory linear in seqlen, no tensor with both a
    sequence and a state dimension (but one state per chunk for return_varlen_states).
    """
    delta = _step_sizes(x, dt, dt_bias, dt_softplus, dt_limit)
    log_decay = delta * A.to(delta.dtype)
    state = _columns(_first_state(x, B, initial_states, delta.dtype), B.shape[2])
    D = None if D is None else _per_channel(D, x, delta.dtype)

    def scan(sequence_of: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        decay = log_decay
        if sequence_of is not None:
            decay = decay.masked_fill(_resets(sequence_of)[..., None], RESET)
        return decay, *ChunkScan.apply(x, delta, decay, B, C, D, z, state, keep)

    decay, out, last, entering = scan(seq_idx, return_varlen_states)
    results = [out]
    if return_final_states:
        results.append(_per_head(last, x))
    if return_varlen_states:
        assert cu_seqlens is not None
        if seq_idx is None:
            decay, _, _, entering = scan(_sequence_of(cu_seqlens, x.shape[1]), True)
        states = _varlen_states(x[0], delta[0], decay[0], B[0], entering, cu_seqlens)
        results.append(states.to(C.dtype))
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
    return delta.clamp(*dt_limit)


def _first_state(x: Tensor, B: Tensor, initial_states: Tensor | None, dtype: torch.dtype) -> Tensor:
    """initial_states or zeros (batch, nheads, headdim, d_state)."""
    if initial_states is not None:
        return initial_states.to(dtype)
    shape = (x.shape[0], *x.shape[2:], B.shape[3])
    return torch.zeros(shape, dtype=dtype, device=x.device)


def _per_channel(D: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """D per head or per channel as (nheads, headdim)."""
    return (D if D.ndim == 2 else D[:, None]).to(dtype).expand(x.shape[2:])


def _resets(sequence_of: Tensor) -> Tensor:
    """(batch, seqlen) bool: a token whose number is not that of the token before."""
    return F.pad(sequence_of[:, 1:] != sequence_of[:, :-1], (1, 0))


def _sequence_of(cu_seqlens: Tensor, seqlen: int) -> Tensor:
    """The sequence number of each token (1, seqlen)."""
    tokens = torch.arange(seqlen, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.bucketize(tokens, cu_seqlens[1:], right=True)[None]


def _columns(state: Tensor, ngroups: int) -> Tensor:
    """(batch, nheads, headdim, d_state) as (batch * ngroups, d_state, columns)."""
    return state.unflatten(1, (ngroups, -1)).permute(0, 1, 4, 2, 3).flatten(3).flatten(0, 1)


def _per_head(columns: Tensor, x: Tensor) -> Tensor:
    """(..., d_state, columns) as (batch, nheads, headdim, d_state), of x (batch, ..., headdim)."""
    heads = columns.unflatten(-1, (-1, x.shape[-1])).permute(0, 2, 3, 1)
    ngroups = x.shape[-2] // heads.shape[1]
    return heads.unflatten(0, (x.shape[0], ngroups)).flatten(1, 2)


def _varlen_states(
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    B: Tensor,
    entering: Tensor,
    cu_seqlens: Tensor,
) -> Tensor:
    """The state after each sequence's last token, from the states that enter the chunks.

    x (seqlen, nheads, headdim) and so on, entering (chunks, ngroups, d_state, columns); returns
    (num_seqs, nheads, headdim, d_state), zeros for an empty sequence.
    """
    ngroups, headdim, num_seqs = B.shape[1], x.shape[2], cu_seqlens.shape[0] - 1
    if not x.shape[0]:
        return delta.new_zeros(num_seqs, *x.shape[1:], B.shape[2])
    last = cu_seqlens[1:].long() - 1
    chunk = last.clamp_min(0) // CHUNK
    token = chunk[:, None] * CHUNK + torch.arange(CHUNK, device=x.device)
    inside = (token <= last[:, None])[..., None]
    token = token.clamp_max(x.shape[0] - 1)
    # float64: autocast would cast float32 matmuls, and their gradients, to 16 bit
    delta, log_decay = (
        t[token].double().where(inside, 0.0).transpose(1, 2) for t in (delta, log_decay)
    )
    # only the paths that end with the chunk
    paths = path_matrix(CHUNK, delta)[:, CHUNK * (CHUNK - 1) :]
    decay = decays(log_decay, paths)  # (num_seqs, nheads, 2 * CHUNK)
    weight = (delta * decay[..., :CHUNK]).transpose(1, 2)[..., None]
    sent = (x[token] * weight).unflatten(2, (ngroups, -1)).permute(0, 2, 3, 4, 1).flatten(2, 3)
    added = (sent @ B[token].double().transpose(1, 2)).unflatten(2, (-1, headdim))
    kept = _per_head(entering[chunk].flatten(0, 1), x[token]) * decay[..., -1, None, None]
    filled = (cu_seqlens.diff() > 0)[:, None, None, None]
    return (added.flatten(1, 2) + kept).where(filled, 0.0)
