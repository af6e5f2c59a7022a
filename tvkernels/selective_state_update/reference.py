"""Plain PyTorch truth of the decode step, also what runs on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["selective_state_update_ref"]


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One step of the recurrence, in place on `state`: see `selective_state_update`.

    Every tensor has its heads: state (batch, nheads, dim, dstate), x (batch, nheads, dim), ...
    """
    dtype = torch.promote_types(torch.promote_types(state.dtype, x.dtype), torch.float32)
    heads_per_group = state.shape[1] // B.shape[1]
    B, C = (t.to(dtype).repeat_interleave(heads_per_group, dim=1) for t in (B, C))
    # a value that a whole head shares comes expanded: its exp is taken once per head
    dt, A = _once(dt).to(dtype), _once(A).to(dtype)
    if dt_bias is not None:
        dt = dt + _once(dt_bias).to(dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    wide_x = x.to(dtype)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    drive = (wide_x * dt).unsqueeze(-1)
    rows = state if state_batch_indices is None else _gather(state, state_batch_indices)
    in_place = rows is state and state.dtype == dtype
    new = state.mul_(decay) if in_place else rows.to(dtype) * decay
    new.addcmul_(drive, B.unsqueeze(-2))
    # not a matmul: a thousand small matrix-vector products cost five times this sum
    out = (new * C.unsqueeze(-2)).sum(-1)
    if D is not None:
        out = out + wide_x * _once(D).to(dtype)
    if z is not None:
        out = out * F.silu(z.to(dtype))
    if state_batch_indices is not None:
        _scatter(state, state_batch_indices, rows, new)
        out = out.masked_fill((state_batch_indices < 0)[:, None, None], 0.0)
    elif not in_place:
        state.copy_(new)
    return out.to(x.dtype)


def _once(x: Tensor) -> Tensor:
    """`x` with every expanded (stride 0) dimension cut to size 1; broadcasting restores it."""
    for dim in range(x.ndim):
        if x.stride(dim) == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def _gather(state: Tensor, indices: Tensor) -> Tensor:
    """The rows of `state` named by `indices`; a padding entry (negative) reads row 0."""
    return state.index_select(0, indices.clamp_min(0))


def _scatter(state: Tensor, indices: Tensor, old: Tensor, new: Tensor) -> None:
    """Write `new` into the rows named by `indices`; padding entries (negative) write nothing.

    Without a look at the values (no synchronisation): a padding entry repeats the write of a live
    entry; where no entry is live, all write row 0 as it was.
    """
    if not indices.shape[0]:
        return
    live = indices >= 0
    source = torch.where(live, torch.arange(len(live), device=live.device), live.int().argmax())
    written = new.to(state.dtype)[source].where(live[source][:, None, None, None], old[source])
    state.index_copy_(0, indices.clamp_min(0).long()[source], written)
