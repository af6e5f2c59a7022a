"""Plain PyTorch reference of the mixer's decode step; also runs on CPUs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tvkernels.core.plain import gather_rows, scatter_rows

__all__ = ["mamba2_decode_step_ref"]


def mamba2_decode_step_ref(
    zxbcdt: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    cache_seqlens: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str | None = "silu",
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One step of convolution, state space and gate, in place: see `mamba2_decode_step`."""
    dtype = torch.promote_types(torch.promote_types(zxbcdt.dtype, ssm_state.dtype), torch.float32)
    heads, headdim, d_state = ssm_state.shape[1:]
    inner, channels = heads * headdim, len(conv1d_weight)
    z, new, dt = zxbcdt.split([inner, channels, heads], dim=-1)

    slots = cache_seqlens[:, None] + torch.arange(1 - conv1d_weight.shape[1], 1, device=new.device)
    slots = slots.remainder(conv_state.shape[2]).long()[:, None].expand(-1, channels, -1)
    ring = gather_rows(conv_state, state_batch_indices).scatter_(2, slots[..., -1:], new[..., None])
    mixed = (ring.gather(2, slots).to(dtype) * conv1d_weight.to(dtype)).sum(-1)
    if conv1d_bias is not None:
        mixed = mixed + conv1d_bias.to(dtype)
    if activation is not None:
        mixed = F.silu(mixed)

    bc = (channels - inner) // 2
    x, B, C = mixed.split([inner, bc, bc], dim=-1)
    x = x.unflatten(-1, (heads, headdim))
    per_group = heads * d_state // bc
    B, C = (t.unflatten(-1, (-1, d_state)).repeat_interleave(per_group, 1) for t in (B, C))
    dt = dt.to(dtype) if dt_bias is None else dt.to(dtype) + dt_bias.to(dtype)
    dt = F.softplus(dt).clamp(*dt_limit)
    decay = torch.exp(-dt * A_log.to(dtype).exp())[..., None, None]

    # In place: this is ssm_state itself unless rows are gathered or the dtype is widened. Where
    # gradients are recorded it is copied, because a gradient needs the state of before.
    differentiable = torch.is_grad_enabled()
    state = gather_rows(ssm_state, state_batch_indices).to(dtype, copy=differentiable)
    state = state * decay if differentiable else state.mul_(decay)
    state.addcmul_((x * dt[..., None])[..., None], B[:, :, None])
    # not a matmul: as a thousand small matrix-vector products it takes five times as long
    y = (state * C[:, :, None]).sum(-1)
    if D is not None:
        y = y + x * D.to(dtype)[:, None]
    y = y.flatten(1) * F.silu(z.to(dtype))
    if state_batch_indices is not None:
        scatter_rows(conv_state, state_batch_indices, ring)
        scatter_rows(ssm_state, state_batch_indices, state)
        y = y.masked_fill((state_batch_indices < 0)[:, None], 0.0)
    elif differentiable or ssm_state.dtype != dtype:
        ssm_state.copy_(state)
    return y.to(zxbcdt.dtype)
