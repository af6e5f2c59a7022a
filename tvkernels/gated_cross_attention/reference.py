"""Gated cross-attention in plain PyTorch, a few query rows at a time: memory linear in the keys.

torch's own blockwise attention would be shorter, but its float32 gradients on the CPU lose two to
three times what plain softmax loses (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tvkernels.core.plain import no_autocast

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
        return text
    acc = torch.promote_types(text.dtype, torch.float32)
    q, k, v = q.to(acc), k.to(acc), v.to(acc)
    if cu_seqlens_q is None or cu_seqlens_k is None:
        attended = _attend(q, k, v, scale)
    else:
        bounds = zip(pairwise(_host(cu_seqlens_q)), pairwise(_host(cu_seqlens_k)))
        parts = [_attend(q[:, a:b], k[:, c:d], v[:, c:d], scale) for (a, b), (c, d) in bounds]
        attended = torch.cat(parts, 1)
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
    """a @ b in the dtype of a and b, forward and backward, also where autocast would lower it.

    b has as many batch dimensions as a, or none.
    """

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
            if not ctx.needs_input_grad[1]:
                return da, None
            return da, (
                a.mT @ grad if a.ndim == b.ndim else a.flatten(0, -2).mT @ grad.flatten(0, -2)
            )


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """(batch, n, nheads * headdim): attention, no mask; the backward recomputes each block."""
    batch, n, nheads, headdim = q.shape
    m, nkvheads = k.shape[1:3]
    if batch * n * m == 0:
        return q.new_zeros(batch, n, nheads * headdim)
    # the query heads that share a key head become neighbouring rows, so k and v are not repeated
    group = nheads // nkvheads
    rows = q.unflatten(2, (nkvheads, group)).transpose(1, 2).flatten(2, 3)
    rows = rows * (headdim**-0.5 if scale is None else scale)
    blocks = rows.split(max(MIN_ROWS, MAP_BLOCK // (batch * nkvheads * m)), dim=2)
    keys, values = k.permute(0, 2, 3, 1), v.transpose(1, 2)
    out = torch.cat([_recomputed(_attend_rows, block, keys, values) for block in blocks], 2)
    return out.unflatten(2, (n, group)).transpose(1, 2).flatten(2)


def _attend_rows(rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return _MatMul.apply(_MatMul.apply(rows, keys).softmax(-1), values)


def _recomputed(fn: Any, *inputs: torch.Tensor) -> torch.Tensor:
    """fn(*inputs); the backward recomputes its intermediates instead of keeping them."""
    # without gradients skip checkpoint: its first call imports a compiler, which takes seconds
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        return fn(*inputs)
    return checkpoint(fn, *inputs, use_reentrant=False, preserve_rng_state=False)


def _host(cu_seqlens: CuSeqlens) -> list[int]:
    return cu_seqlens.tolist() if isinstance(cu_seqlens, torch.Tensor) else list(cu_seqlens)
