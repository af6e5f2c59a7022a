"""Gated cross-attention in plain PyTorch, a few query rows at a time: memory linear in the keys.

torch's own blockwise attention would be shorter, but its float32 gradients on the CPU lose two to
three times what plain softmax loses (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from tvkernels.core.plain import first_order, no_autocast, one_operator

# attention weights held at once, 16 MB in float32; never fewer than MIN_ROWS rows, because each
# block reads all of k
MAP_BLOCK = 1 << 22
MIN_ROWS = 16

CuSeqlens = torch.Tensor | Sequence[int]


def gated_cross_attention_ref(
    text: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    alpha: torch.Tensor,
    *,
    out_proj: torch.Tensor | None = None,
    scale: float | None = None,
    cu_seqlens_q: CuSeqlens | None = None,
    cu_seqlens_k: CuSeqlens | None = None,
) -> torch.Tensor:
    """`gated_cross_attention` in plain PyTorch; arguments and result are the same."""
    if k.shape[1] == 0:
        # a copy: changing the result in place must not change text
        return text.clone()
    acc = torch.promote_types(text.dtype, torch.float32)
    q, k, v = q.to(acc), k.to(acc), v.to(acc)
    factor = q.shape[3] ** -0.5 if scale is None else float(scale)
    attended = _Attend.apply(q, k, v, factor, _offsets(cu_seqlens_q), _offsets(cu_seqlens_k))
    update = attended if out_proj is None else _MatMul.apply(attended, out_proj.to(acc).mT)
    return _GatedAdd.apply(text.to(acc), alpha.to(acc).reshape(()).tanh(), update).to(text.dtype)


class _GatedAdd(torch.autograd.Function):
    """text + gate * update, where a gate of 0 returns text bit for bit and still has its gradient.

    Plain arithmetic would turn -0.0 into 0.0, and NaN * 0 into NaN; torch.where alone would lose
    the gate's gradient at 0, which is where training starts.
    """

    @staticmethod
    def forward(
        ctx: Any, text: torch.Tensor, gate: torch.Tensor, update: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(gate, update)
        return torch.where((gate == 0) | (update == 0), text, text + gate * update)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        (grad,) = grads
        gate, update = ctx.saved_tensors
        return grad, (grad * update).sum(), gate * grad


class _MatMul(torch.autograd.Function):
    """a @ b in the dtype of a and b, forward and backward, also where autocast would lower it."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        with no_autocast(a):
            return a @ b

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (grad,) = grads
        a, b = ctx.saved_tensors
        with no_autocast(a):
            da = grad @ b.mT if ctx.needs_input_grad[0] else None
            db = a.flatten(0, -2).mT @ grad.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return da, db


class _Attend(torch.autograd.Function):
    """(batch, n, nheads * headdim): attention, no mask. The backward computes each block again."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        cu_q: torch.Tensor | None,
        cu_k: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v, cu_q, cu_k)
        ctx.scale = scale
        return _attend(q, k, v, scale, cu_q, cu_k)

    @staticmethod
    @first_order("gated_cross_attention")
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, cu_q, cu_k = ctx.saved_tensors
        return *_attend_backward(dout, q, k, v, ctx.scale, cu_q, cu_k), None, None, None


def _fake_attend(q: torch.Tensor, *_: Any) -> torch.Tensor:
    batch, n, nheads, headdim = q.shape
    return q.new_empty(batch, n, nheads * headdim)


@one_operator("tvkernels::attend_reference_fwd", fake=_fake_attend)
def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    cu_q: torch.Tensor | None,
    cu_k: torch.Tensor | None,
) -> torch.Tensor:
    out = q.new_zeros(q.shape)
    with no_autocast(q):
        for own, other in _sequences(q, k, cu_q, cu_k):
            keys, values = k[:, other].permute(0, 2, 3, 1), v[:, other].transpose(1, 2)
            blocks = _blocks(_grouped(q[:, own], k.shape[2]) * scale, keys)
            read = [(block @ keys).softmax(-1) @ values for block in blocks]
            out[:, own] = _ungrouped(torch.cat(read, 2), q.shape[2])
    return out.flatten(2)


def _fake_attend_backward(dout: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    q, k, v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:3])
    return q, k, v


@one_operator("tvkernels::attend_reference_bwd", fake=_fake_attend_backward)
def _attend_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    cu_q: torch.Tensor | None,
    cu_k: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    grads = [x.new_zeros(x.shape) for x in (q, k, v)]
    dout, nkvheads = dout.unflatten(2, q.shape[2:]), k.shape[2]
    with no_autocast(q):
        for own, other in _sequences(q, k, cu_q, cu_k):
            keys, values = k[:, other].permute(0, 2, 3, 1), v[:, other].transpose(1, 2)
            dq, dk, dv = (grad[:, part] for grad, part in zip(grads, (own, other, other)))
            rows = _blocks(_grouped(q[:, own], nkvheads) * scale, keys)
            drows = []
            for block, dread in zip(rows, _blocks(_grouped(dout[:, own], nkvheads), keys)):
                weights = (block @ keys).softmax(-1)
                dweights = dread @ values.mT
                dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
                drows.append(dlogits @ keys.mT)
                dk += (dlogits.mT @ block).transpose(1, 2)
                dv += (weights.mT @ dread).transpose(1, 2)
            dq.copy_(_ungrouped(torch.cat(drows, 2), q.shape[2]) * scale)
    return grads[0], grads[1], grads[2]


def _sequences(
    q: torch.Tensor, k: torch.Tensor, cu_q: torch.Tensor | None, cu_k: torch.Tensor | None
) -> list[tuple[slice, slice]]:
    """The query rows and the keys of each sequence that has both."""
    if cu_q is None or cu_k is None:
        pairs = [(slice(0, q.shape[1]), slice(0, k.shape[1]))]
    else:
        ends = [[slice(*pair) for pair in pairwise(cu.tolist())] for cu in (cu_q, cu_k)]
        pairs = list(zip(*ends))
    return [(a, b) for a, b in pairs if len(q) and a.start < a.stop and b.start < b.stop]


def _grouped(x: torch.Tensor, nkvheads: int) -> torch.Tensor:
    """(batch, nkvheads, rows, headdim): the heads that share a key head are neighbouring rows, so
    that k and v are not repeated."""
    return x.unflatten(2, (nkvheads, -1)).transpose(1, 2).flatten(2, 3)


def _ungrouped(rows: torch.Tensor, nheads: int) -> torch.Tensor:
    """The inverse of `_grouped`: (batch, n, nheads, headdim)."""
    return rows.unflatten(2, (-1, nheads // rows.shape[1])).transpose(1, 2).flatten(2, 3)


def _blocks(rows: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
    batch, nkvheads, _, m = keys.shape
    return rows.split(max(MIN_ROWS, MAP_BLOCK // (batch * nkvheads * m)), dim=2)


def _offsets(cu_seqlens: CuSeqlens | None) -> torch.Tensor | None:
    return None if cu_seqlens is None else torch.as_tensor(cu_seqlens)
