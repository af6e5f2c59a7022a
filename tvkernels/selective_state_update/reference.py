"""Plain PyTorch reference of the decode step; also runs on CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tvkernels.core.plain import gather_rows, scatter_rows

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

    Every tensor has its head dimension: state (batch, nheads, dim, dstate), x (batch, nheads, dim).
    """
    dtype = torch.promote_types(torch.promote_types(state.dtype, x.dtype), torch.float32)
    heads_per_group = state.shape[1] // B.shape[1]
    B, C = (t.to(dtype).repeat_interleave(heads_per_group, dim=1) for t in (B, C))
    # values shared by a head are expanded (stride 0): exp is computed once per head
    dt, A = _once(dt).to(dtype), _once(A).to(dtype)
    if dt_bias is not None:
        dt = dt + _once(dt_bias).to(dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    wide_x = x.to(dtype)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    drive = (wide_x * dt).unsqueeze(-1)
    rows = gather_rows(state, state_batch_indices)
    # a gradient needs the state of before, which is written to below
    differentiable = torch.is_grad_enabled()
    in_place = rows is state and state.dtype == dtype and not differentiable
    new = state.mul_(decay) if in_place else rows.to(dtype, copy=differentiable) * decay
    new.addcmul_(drive, B.unsqueeze(-2))
    # not a matmul: as a thousand small matrix-vector products it takes five times as long
    out = (new * C.unsqueeze(-2)).sum(-1)
    if D is not None:
        out = out + wide_x * _once(D).to(dtype)
    if z is not None:
        out = out * F.silu(z.to(dtype))
    if state_batch_indices is not None:
        scatter_rows(state, state_batch_indices, new)
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
