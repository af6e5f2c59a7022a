"""Attention over a shared prefix and ragged tails in plain PyTorch, in blocks of keys and tokens.

Keys and values are not repeated over the query heads. The r query heads of a key head are rows of
one matrix product, and so are the batch rows where they share the prefix, which is then read once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tvkernels.core.plain import no_autocast, one_operator

# Keys in one block. It is fixed, and a tail's last block is filled up to it, so that the bits do
# not depend on the capacity.
KEY_BLOCK = 512
# attention weights held at once, 16 MB in float32; never fewer than those of one token of each row
MAP_BLOCK = 1 << 22

# maximum of the logits so far, sum of the weights below that maximum, weighted sum of the values
Sums = tuple[Tensor, Tensor, Tensor]


def prefix_attention_ref(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    prefix: tuple[Tensor, Tensor] | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """`prefix_attention` in plain PyTorch; arguments and result are the same."""
    pair = (key[:1, :0], value[:1, :0]) if prefix is None else prefix
    factor = q.shape[3] ** -0.5 if scale is None else float(scale)
    with torch.no_grad(), no_autocast(q):
        return _attend(q, key, value, lengths, *pair, factor)


def _fake_attend(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


@one_operator("tvkernels::prefix_attention_reference", fake=_fake_attend)
def _attend(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    scale: float,
) -> Tensor:
    out = q.new_empty(q.shape)
    if not out.numel():
        return out
    batch, n, nheads, _ = q.shape
    step = max(1, MAP_BLOCK // (batch * nheads * KEY_BLOCK))
    dtype = torch.promote_types(q.dtype, torch.float32)
    for start in range(0, n, step):
        tokens = slice(start, min(start + step, n))
        rows = _grouped(q[:, tokens].to(dtype) * scale, key.shape[2])
        sums = _over_prefix(rows, prefix_key, prefix_value)
        # keys of the tail that each row sees, (batch, 1, rows, 1)
        token = torch.arange(tokens.start, tokens.stop, device=q.device)
        seen = (lengths[:, None] - n + 1 + token).repeat_interleave(nheads // key.shape[2], 1)
        _, total, read = _over_tail(sums, rows, key, value, lengths, seen[:, None, :, None])
        out[:, tokens] = _ungrouped(read / total, nheads)
    return out


def _over_prefix(rows: Tensor, key: Tensor, value: Tensor) -> Sums:
    batch = len(rows)
    is_shared = len(key) < batch
    if is_shared:
        rows = rows.transpose(0, 1).flatten(1, 2)[None]
    top = rows.new_full((*rows.shape[:3], 1), -math.inf)
    sums = top, torch.zeros_like(top), torch.zeros_like(rows)
    for start in range(0, key.shape[1], KEY_BLOCK):
        k, v = (x[:, start : start + KEY_BLOCK].transpose(1, 2).to(rows) for x in (key, value))
        sums = _add(sums, rows @ k.mT, v)
    if is_shared:
        top, total, read = (x[0].unflatten(1, (batch, -1)).transpose(0, 1) for x in sums)
        sums = top, total, read
    return sums


def _over_tail(
    sums: Sums, rows: Tensor, key: Tensor, value: Tensor, lengths: Tensor, seen: Tensor
) -> Sums:
    for start in range(0, key.shape[1], KEY_BLOCK):
        at = torch.arange(start, start + KEY_BLOCK, device=key.device)
        unwritten = (at >= lengths[:, None])[:, None, :, None]
        k, v = (_written(x, start, unwritten, rows) for x in (key, value))
        sums = _add(sums, (rows @ k.mT).masked_fill_(at >= seen, -math.inf), v)
    return sums


def _written(x: Tensor, start: int, unwritten: Tensor, rows: Tensor) -> Tensor:
    """A whole block of a tail, (batch, nkvheads, KEY_BLOCK, headdim), 0 where nothing is written:
    a weight of 0 times NaN would be NaN."""
    part = x[:, start : start + KEY_BLOCK].transpose(1, 2)
    block = rows.new_zeros(*part.shape[:2], KEY_BLOCK, part.shape[3])
    block[:, :, : part.shape[2]] = part
    return block.masked_fill_(unwritten, 0)


def _add(sums: Sums, logits: Tensor, values: Tensor) -> Sums:
    """The sums with one more block of keys."""
    before, total, read = sums
    top = torch.maximum(before, logits.amax(-1, keepdim=True))
    # a row that has seen no key: -inf minus itself would be NaN
    base = top.masked_fill(top == -math.inf, 0)
    weights = logits.sub_(base).exp_()
    fade = (before - base).exp()
    return top, total * fade + weights.sum(-1, keepdim=True), read * fade + weights @ values


def _grouped(x: Tensor, nkvheads: int) -> Tensor:
    """(batch, nkvheads, rows, headdim): the heads that share a key head are neighbouring rows."""
    return x.unflatten(2, (nkvheads, -1)).transpose(1, 2).flatten(2, 3)


def _ungrouped(rows: Tensor, nheads: int) -> Tensor:
    """The inverse of `_grouped`: (batch, n, nheads, headdim)."""
    return rows.unflatten(2, (-1, nheads // rows.shape[1])).transpose(1, 2).flatten(2, 3)
