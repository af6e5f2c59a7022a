"""Token selection in plain PyTorch: a few query rows against all keys, block by block of keys.

Only the logits (batch, n_queries * nheads, seqlen) are ever whole; no seqlen x seqlen map exists.
Products run in float64 and are rounded to float32: a matrix product rounds the same dot product
differently at different positions, and equal keys must tie to the lower index. On a device without
float64 they run in float32, with a warning: equal keys may then rank in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from tvkernels.core.plain import one_operator, widest

# keys widened to float64 (and projected) at once
KEY_BLOCK = 1024
# what a device without float64 loses
LOST = "equal keys may rank in any order"
# eps of a norm that is given without one: Qwen2's, on which VideoChat-Flash is built
NORM_EPS = 1e-6


class TopKResult(NamedTuple):
    """What `attention_topk` and `attention_topk_hidden` return.

    kept: (batch, keep) int64, ascending, relative to the span's start.
    dropped: (batch, length - keep) int64, the rest of the span, ascending.
    scores: (batch, length) float32, the attention each token of the span receives.

    With cu_seqlens each is one-dimensional: the sequences' parts one after the other.
    """

    kept: torch.Tensor
    dropped: torch.Tensor
    scores: torch.Tensor


def attention_topk_ref(
    q: torch.Tensor,
    k: torch.Tensor,
    keep: int | Sequence[int],
    span: Sequence[Any],
    *,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | Sequence[int] | None = None,
) -> TopKResult:
    """`attention_topk` in plain PyTorch; arguments and result are the same."""
    if cu_seqlens is not None:
        return _packed(
            lambda i, rows: attention_topk_ref(
                q[i : i + 1], k[:, rows], _at(keep, i), span[i], scale=scale
            ),
            cu_seqlens,
        )
    with torch.no_grad():
        return _select(_key_logits(_grouped_query(q, k.shape[2], scale), k), keep, span)


def attention_topk_hidden_ref(
    q: torch.Tensor,
    hidden: torch.Tensor,
    k_weight: torch.Tensor,
    keep: int | Sequence[int],
    span: Sequence[Any],
    *,
    scale: float | None = None,
    norm_weight: torch.Tensor | tuple[torch.Tensor, float] | None = None,
    k_bias: torch.Tensor | None = None,
    rope: tuple[torch.Tensor, torch.Tensor] | None = None,
    cu_seqlens: torch.Tensor | Sequence[int] | None = None,
    tail: torch.Tensor | None = None,
) -> TopKResult:
    """`attention_topk_hidden` in plain PyTorch; arguments and result are the same."""
    if cu_seqlens is not None:
        return _packed(
            lambda i, rows: attention_topk_hidden_ref(
                q[i : i + 1], hidden[:, rows], k_weight, _at(keep, i), span[i],
                scale=scale, norm_weight=norm_weight, k_bias=k_bias,
                rope=None if rope is None else (rope[0][rows], rope[1][rows]),
            ),
            cu_seqlens,
        )  # fmt: skip
    headdim = q.shape[-1]
    with torch.no_grad():
        weight, eps = _norm(norm_weight)
        rows = _grouped_query(q, k_weight.shape[0] // headdim, scale)
        projection = k_weight.to(rows.dtype)
        if weight is not None:
            projection = projection * weight.to(rows.dtype)
        if rope is None:
            # Without rope fold W into q: one row of width d_model per query head. The bias adds
            # q . b to every logit of a head then, and the softmax ignores it.
            rows = (rows @ projection.unflatten(0, (-1, headdim))).flatten(1, 2)[:, None]
        cos, sin = rope or (None, None)
        eps = None if weight is None else float(eps)
        logits = _hidden_logits(rows, hidden, tail, projection, k_bias, eps, cos, sin)
        return _select(logits, keep, span)


def uniform_topk_ref(length: int, keep: int, device: torch.device | str | None) -> torch.Tensor:
    """`uniform_topk` in integers.

    The quotient of two integers below 2^53, rounded to float64, never reaches the next integer, so
    truncating it is the floor division; integers give it on devices without float64 too.
    """
    steps = torch.arange(keep, device=device)
    return steps * (length - 1) // max(keep - 1, 1)


def dropped_indices_ref(kept: torch.Tensor, length: int) -> torch.Tensor:
    """`dropped_indices` in plain PyTorch."""
    flags = torch.zeros(*kept.shape[:-1], length, dtype=torch.uint8, device=kept.device)
    flags.scatter_(-1, kept, 1)
    # a stable sort puts the unflagged positions first, in order; counting them would be a host sync
    return flags.argsort(dim=-1, stable=True)[..., : length - kept.shape[-1]]


def _grouped_query(q: torch.Tensor, nkvheads: int, scale: float | None) -> torch.Tensor:
    """(batch, nkvheads, rows, headdim) in the dtype of all products: the scaled query rows that
    share each key head."""
    nheads, headdim = q.shape[-2:]
    n_queries = q.shape[1] if q.ndim == 4 else 1
    by_head = q.reshape(q.shape[0], n_queries, nkvheads, nheads // nkvheads, headdim)
    rows = by_head.transpose(1, 2).flatten(2, 3).to(widest(q, "attention_topk", LOST))
    return rows * (headdim**-0.5 if scale is None else scale)


def _fake_logits(rows: torch.Tensor, keys: torch.Tensor, *_: Any) -> torch.Tensor:
    batch, nkvheads, n = rows.shape[:3]
    dtype = torch.promote_types(keys.dtype, torch.float32)
    return rows.new_empty(batch, nkvheads * n, keys.shape[1], dtype=dtype)


@one_operator("tvkernels::attention_topk_key_logits", fake=_fake_logits)
def _key_logits(rows: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(batch, nkvheads * rows, seqlen) for k (batch, seqlen, nkvheads, width)."""
    logits = [_logits(rows, block, k.dtype) for block in k.split(KEY_BLOCK, dim=1)]
    return torch.cat(logits, -1)


def _fake_hidden_logits(
    rows: torch.Tensor, hidden: torch.Tensor, tail: torch.Tensor | None, *_: Any
) -> torch.Tensor:
    logits = _fake_logits(rows, hidden)
    if tail is None:
        return logits
    return logits.new_empty(*logits.shape[:2], hidden.shape[1] + tail.shape[1])


@one_operator("tvkernels::attention_topk_hidden_logits", fake=_fake_hidden_logits)
def _hidden_logits(
    rows: torch.Tensor,
    hidden: torch.Tensor,
    tail: torch.Tensor | None,
    projection: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> torch.Tensor:
    """As `_key_logits`, for the keys of hidden (batch, seqlen, d_model) and of tail behind it; eps
    None: no norm."""
    logits = []
    seqlen = hidden.shape[1]
    for start in range(0, seqlen + (0 if tail is None else tail.shape[1]), KEY_BLOCK):
        part = slice(start, start + KEY_BLOCK)
        x = hidden[:, part].to(rows.dtype)
        if tail is not None and part.stop > seqlen:
            own = slice(max(0, start - seqlen), part.stop - seqlen)
            x = torch.cat([x, tail[:, own].to(rows.dtype)], 1)
        if eps is not None:
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        keys = x[:, :, None]
        if cos is not None and sin is not None:
            keys = _rotated_keys(x, projection, bias, cos[part, None], sin[part, None])
        logits.append(_logits(rows, keys, hidden.dtype))
    return torch.cat(logits, -1)


def _logits(rows: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    products = rows @ keys.to(rows.dtype).permute(0, 2, 3, 1)
    return products.flatten(1, 2).to(torch.promote_types(dtype, torch.float32))


def _norm(norm_weight: torch.Tensor | tuple[torch.Tensor, float] | None) -> Any:
    return norm_weight if isinstance(norm_weight, tuple) else (norm_weight, NORM_EPS)


def _rotated_keys(
    x: torch.Tensor,
    projection: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """(batch, block, nkvheads, headdim): the projected keys of one block, rotated by half."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    keys = F.linear(x, projection, None if bias is None else bias.to(x.dtype))
    keys = keys.unflatten(-1, (-1, cos.shape[-1]))
    first, second = keys.chunk(2, -1)
    return keys * cos + torch.cat([-second, first], -1) * sin


def _select(logits: torch.Tensor, keep: int | Sequence[int], span: Sequence[Any]) -> TopKResult:
    """Softmax over all keys, mean over the rows, then the `keep` highest of the span."""
    start, length = span
    attention = logits.softmax(-1, dtype=widest(logits, "attention_topk", LOST))
    scores = attention[..., start : start + length].mean(1).to(logits.dtype)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    kept, dropped = (part.sort(-1).values for part in (order[:, :keep], order[:, keep:]))
    return TopKResult(kept, dropped, scores)


def _packed(
    one: Callable[[int, slice], TopKResult], cu_seqlens: torch.Tensor | Sequence[int]
) -> TopKResult:
    """Run `one(i, rows of sequence i)` on every sequence and concatenate the results."""
    offsets = cu_seqlens.tolist() if isinstance(cu_seqlens, torch.Tensor) else cu_seqlens
    parts = [one(i, slice(a, b)) for i, (a, b) in enumerate(pairwise(offsets))]
    return TopKResult(*(torch.cat([p[0] for p in column]) for column in zip(*parts)))


def _at(keep: int | Sequence[int], i: int) -> int:
    return keep if isinstance(keep, int) else keep[i]
