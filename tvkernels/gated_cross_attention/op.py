"""Gated cross-attention: text tokens read the dropped vision tokens and add what they find.

    out = text + tanh(alpha) * out_proj(softmax(scale * q k^T) v)

Full attention, no mask and no position. Source: the transfer of TransV in TimeViper (arXiv
2511.16595), with the tanh gate of Flamingo (arXiv 2204.14198).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    Offsets,
    expect_dtype,
    expect_ndim,
    expect_number,
    expect_offsets,
    expect_same_device,
    expect_shape,
    fail,
)
from tvkernels.core.library import distinct, kernel_op
from tvkernels.core.plain import first_order
from tvkernels.gated_cross_attention.reference import gated_cross_attention_ref

__all__ = ["gated_cross_attention"]

# largest headdim that the kernels hold in registers
MOST = 256


def gated_cross_attention(
    text: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    *,
    out_proj: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens_q: Offsets | None = None,
    cu_seqlens_k: Offsets | None = None,
) -> Tensor:
    """Add to each text token what it attends to among the keys, through one gate.

    out = text + tanh(alpha) * out_proj(softmax(scale * q k^T) v)

    Args:
        text: (batch, n, d_model).
        q: (batch, n, nheads, headdim), the text's queries.
        k, v: (batch, m, nkvheads, headdim); head h serves query heads h * r to h * r + r - 1 with
            r = nheads / nkvheads. text, q, k and v have one dtype.
        alpha: one element, any floating dtype.
        out_proj: (d_model, nheads * headdim), any floating dtype, or None where d_model is
            nheads * headdim.
        scale: factor on q k^T; headdim ** -0.5 by default.
        cu_seqlens_q, cu_seqlens_k: (n_seqs + 1,) int32 or int64, or the same as a sequence of ints;
            both or neither, batch 1. Sequence i's text, rows cu_seqlens_q[i] to
            cu_seqlens_q[i + 1], attends to its own keys only.

    Returns:
        (batch, n, d_model) in text's dtype. m = 0, or alpha = 0, returns text bit for bit.

    Raises:
        ValueError: a shape, dtype or offset is not as above.
        NotImplementedError: a headdim above 256 on Triton.
        BackendUnavailable: the backend due for text is not there.

    Numerics: the reference computes in float32 (float64 for float64) and rounds once. On Triton
    products of 16 bit tensors add up in float32, but their operands, among them the softmax's
    weights and what was read, are rounded to 16 bits; sums have one order (core/tune.py). First
    order gradients to text, q, k, v, alpha and out_proj; alpha's at 0 is right. Memory is linear in
    n and in m, forward and backward. Nothing is read back from the device, except by the reference
    cu_seqlens tensors that lie there: give it those on the CPU, or as ints.
    """
    _check(text, q, k, v, alpha, out_proj)
    _check_packing(text, k, cu_seqlens_q, cu_seqlens_k)
    if scale is not None:
        expect_number("gated_cross_attention", "scale", scale)
    if backend_for(text, "gated_cross_attention") == "reference":
        return gated_cross_attention_ref(
            text, q, k, v, alpha, out_proj=out_proj, scale=scale,
            cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
        )  # fmt: skip
    if k.shape[1] == 0:
        return text.clone()
    headdim = q.shape[3]
    if headdim > MOST:
        raise NotImplementedError(
            f"gated_cross_attention: Triton has headdim up to {MOST}, got {headdim}; "
            'use_backend("reference") has any'
        )
    tensors = distinct(text, q, k, v, alpha, out_proj)
    offsets = (_on_device(cu, text) for cu in (cu_seqlens_q, cu_seqlens_k))
    return _Transfer.apply(*tensors, *offsets, headdim**-0.5 if scale is None else float(scale))


def _check(
    text: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    out_proj: Tensor | None,
) -> None:
    op = "gated_cross_attention"
    expect_ndim(op, "text", text, "(batch, n, d_model)", 3)
    expect_dtype(op, "text", text)
    batch, n, d_model = text.shape
    expect_shape(op, "q", q, "(batch, n, nheads, headdim)", (batch, n, None, None))
    nheads, headdim = q.shape[2:]
    expect_shape(op, "k", k, "(batch, m, nkvheads, headdim)", (batch, None, None, headdim))
    expect_shape(op, "v", v, "(batch, m, nkvheads, headdim)", k.shape)
    if k.shape[2] < 1 or nheads % k.shape[2]:
        fail(op, "k", f"have key heads that divide nheads {nheads} (grouped query)", k.shape[2])
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype != text.dtype:
            fail(op, name, f"have the dtype of text ({text.dtype})", x.dtype)
    expect_dtype(op, "alpha", alpha)
    if alpha.numel() != 1:
        fail(op, "alpha", "have one element (one gate per call)", f"shape {tuple(alpha.shape)}")
    if out_proj is not None:
        sizes = (d_model, nheads * headdim)
        expect_shape(op, "out_proj", out_proj, "(d_model, nheads * headdim)", sizes)
        expect_dtype(op, "out_proj", out_proj)
    elif nheads * headdim != d_model:
        rule = f"be given unless nheads * headdim ({nheads * headdim}) is d_model ({d_model})"
        fail(op, "out_proj", rule, None)
    expect_same_device(op, text=text, q=q, k=k, v=v, alpha=alpha, out_proj=out_proj)


def _check_packing(text: Tensor, k: Tensor, cu_q: Offsets | None, cu_k: Offsets | None) -> None:
    op = "gated_cross_attention"
    if cu_q is None and cu_k is None:
        return
    if cu_q is None or cu_k is None:
        given = "cu_seqlens_k alone" if cu_q is None else "cu_seqlens_q alone"
        fail(op, "cu_seqlens_q and cu_seqlens_k", "be given together", given)
    if text.shape[0] != 1:
        fail(op, "text", "have batch 1 (cu_seqlens packs sequences)", f"shape {tuple(text.shape)}")
    expect_offsets(op, "cu_seqlens_q", cu_q, text.shape[1], exact=True)
    expect_offsets(op, "cu_seqlens_k", cu_k, k.shape[1], exact=True)
    if len(cu_q) != len(cu_k) or len(cu_q) < 2:
        rule = "have the same number of entries, n_seqs + 1 with n_seqs at least 1"
        fail(op, "cu_seqlens_q and cu_seqlens_k", rule, f"{len(cu_q)} and {len(cu_k)}")


def _on_device(offsets: Offsets | None, text: Tensor) -> Tensor | None:
    return None if offsets is None else torch.as_tensor(offsets, device=text.device).contiguous()


class _Transfer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        text: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        alpha: Tensor,
        out_proj: Tensor | None,
        cu_q: Tensor | None,
        cu_k: Tensor | None,
        scale: float,
    ) -> Tensor:
        out, attended, norm = _transfer_fwd(text, q, k, v, alpha, out_proj, cu_q, cu_k, scale)
        ctx.save_for_backward(q, k, v, alpha, out_proj, attended, norm, cu_q, cu_k)
        ctx.scale = scale
        return out

    @staticmethod
    @first_order("gated_cross_attention")
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk, dv, dalpha, dproj = _transfer_bwd(dout, *ctx.saved_tensors, ctx.scale)
        out_proj = ctx.saved_tensors[4]
        return dout, dq, dk, dv, dalpha, None if out_proj is None else dproj, None, None, None


def _attended_dtype(text: Tensor, out_proj: Tensor | None) -> torch.dtype:
    """What was read is rounded to text's dtype, unless the projection has another one."""
    if out_proj is None or out_proj.dtype == text.dtype:
        return text.dtype
    return torch.promote_types(text.dtype, torch.float32)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_transfer_fwd(
    text: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, out_proj: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, nheads, headdim = q.shape
    wide = torch.promote_types(text.dtype, torch.float32)
    attended = text.new_empty(batch * n, nheads, headdim, dtype=_attended_dtype(text, out_proj))
    return _like(text), attended, text.new_empty(2, batch * n, nheads, dtype=wide)


@kernel_op("tvkernels::gated_cross_attention_fwd", fake=_fake_transfer_fwd)
def _transfer_fwd(
    text: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    out_proj: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """out; what was read, (tokens, nheads, headdim); maximum and inverse sum of each row."""
    from tvkernels.gated_cross_attention.kernel import transfer_forward

    dtype = _attended_dtype(text, out_proj)
    return transfer_forward(text, q, k, v, alpha, out_proj, cu_q, cu_k, scale, dtype)


def _fake_transfer_bwd(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, out_proj: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dproj = alpha.new_empty(0) if out_proj is None else _like(out_proj)
    return _like(q), _like(k), _like(v), _like(alpha), dproj


@kernel_op("tvkernels::gated_cross_attention_bwd", fake=_fake_transfer_bwd)
def _transfer_bwd(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    out_proj: Tensor | None,
    attended: Tensor,
    norm: Tensor,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, alpha and out_proj, the last without elements where there is none."""
    from tvkernels.gated_cross_attention.kernel import transfer_backward

    return transfer_backward(dout, q, k, v, alpha, out_proj, attended, norm, cu_q, cu_k, scale)
