"""Plain PyTorch reference of the replayed decode steps; also runs on CPUs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tvkernels.core.plain import gather_rows, one_operator, scatter_rows

__all__ = ["replay_flush_ref", "replay_state_update_ref"]


def replay_state_update_ref(
    state: Tensor,
    pending_x: Tensor,
    pending_dt: Tensor,
    pending_B: Tensor,
    written: Tensor,
    cache_seqlens: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """Further tokens, in place on the state and the pending tokens: see `replay_state_update`.

    x and z are (batch, seqlen, nheads, dim), dt (batch, seqlen, nheads), B and C (batch, seqlen,
    ngroups, dstate).
    """
    held = (pending_x, pending_dt, pending_B)
    rows_x, rows_dt, rows_B = (gather_rows(t, state_batch_indices).clone() for t in held)
    begin = gather_rows(written, state_batch_indices)
    now = _replayed(gather_rows(state, state_batch_indices), rows_x, rows_dt, rows_B, begin,
                    cache_seqlens)  # fmt: skip
    seqlen, slots = x.shape[1], pending_x.shape[1]
    full = cache_seqlens[:, None] - begin + seqlen > slots // 2
    _write(state, written, now, full, cache_seqlens, state_batch_indices)

    outs = []
    for token in range(seqlen):
        new_x, new_B = x[:, token], B[:, token]
        # token by token, since the CPU rounds softplus and exp differently with the tensor's size
        step = dt[:, token].to(now.dtype)
        step = step if dt_bias is None else step + dt_bias.to(now.dtype)
        step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit)
        step = torch.stack([step, torch.exp(step * A.to(now.dtype))], -1)
        now = _step(now, new_x, step, new_B)
        c = C[:, token].to(now.dtype).repeat_interleave(now.shape[1] // C.shape[2], 1)
        y = (now * c[:, :, None]).sum(-1)
        y = y if D is None else y + new_x.to(now.dtype) * D.to(now.dtype)[:, None]
        outs.append(y if z is None else y * F.silu(z[:, token].to(now.dtype)))
        slot = ((cache_seqlens + token) % slots).long()
        each = torch.arange(len(slot), device=slot.device)
        for rows, new in ((rows_x, new_x), (rows_dt, step), (rows_B, new_B)):
            rows.index_put_((each, slot), new.to(rows.dtype))
    out = torch.stack(outs, 1)
    for t, rows in zip(held, (rows_x, rows_dt, rows_B)):
        _put(t, rows, state_batch_indices)
    if state_batch_indices is not None:
        out = out.masked_fill((state_batch_indices < 0)[:, None, None, None], 0.0)
    return out.to(x.dtype)


def replay_flush_ref(
    state: Tensor,
    pending_x: Tensor,
    pending_dt: Tensor,
    pending_B: Tensor,
    written: Tensor,
    cache_seqlens: Tensor,
    state_batch_indices: Tensor | None = None,
) -> None:
    """Write the pending tokens into `state`: see `replay_flush`."""
    rows = (gather_rows(t, state_batch_indices) for t in (state, pending_x, pending_dt, pending_B))
    begin = gather_rows(written, state_batch_indices)
    now = _replayed(*rows, begin, cache_seqlens)
    pending = cache_seqlens[:, None] > begin
    _write(state, written, now, pending, cache_seqlens, state_batch_indices)


def _fake_replayed(state: Tensor, x: Tensor, *_: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(state.dtype, x.dtype), torch.float32)
    return state.new_empty(state.shape, dtype=dtype)


@one_operator("tvkernels::replayed_ref", fake=_fake_replayed)
def _replayed(
    state: Tensor, x: Tensor, dt: Tensor, B: Tensor, begin: Tensor, end: Tensor
) -> Tensor:
    """The state (batch, nheads, dim, dstate) behind the pending tokens begin .. end of each row."""
    dtype = torch.promote_types(torch.promote_types(state.dtype, x.dtype), torch.float32)
    state, slots = state.to(dtype, copy=True).contiguous(), x.shape[1]
    each = torch.arange(len(state), device=state.device)
    for i in range(slots // 2):
        # the heads of a row were written together, so the first one speaks for all
        slot = ((begin[:, 0] + i) % slots).long()
        new = _step(state, x[each, slot], dt[each, slot], B[each, slot])
        state = torch.where((begin + i < end[:, None])[..., None, None], new, state)
    return state


def _step(state: Tensor, x: Tensor, dt: Tensor, B: Tensor) -> Tensor:
    """One token further; dt (batch, nheads, 2) is the step and the decay exp(step * A)."""
    B = B.to(state.dtype).repeat_interleave(state.shape[1] // B.shape[1], 1)
    step, decay = dt[..., None].to(state.dtype).unbind(2)
    drive = (x.to(state.dtype) * step)[..., None]
    return torch.addcmul(state * decay[..., None], drive, B[:, :, None])


def _write(
    state: Tensor,
    written: Tensor,
    now: Tensor,
    which: Tensor,
    seqlens: Tensor,
    indices: Tensor | None,
) -> None:
    """`now` becomes the state of those (batch, nheads) heads that `which` names."""
    before, begin = gather_rows(state, indices), gather_rows(written, indices)
    new = torch.where(which[..., None, None], now.to(state.dtype), before)
    _put(state, new, indices)
    _put(written, torch.where(which, seqlens[:, None].to(written.dtype), begin), indices)


def _put(whole: Tensor, rows: Tensor, indices: Tensor | None) -> None:
    if indices is None:
        whole.copy_(rows)
    else:
        scatter_rows(whole, indices, rows)
