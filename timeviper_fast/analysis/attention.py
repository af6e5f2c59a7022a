"""Attention weights of a layer, without a matrix of all rows by all columns.

    P[i, j] = softmax over j <= i of (q_i . k_j) / sqrt(headdim)

The mass of row i on a group is the sum of P[i, j] over its tokens j. It is the output of attention
whose values are 1 for the group's tokens and 0 for the others: a fused kernel computes it exactly
for all rows. Source: attention as in arXiv 1706.03762; masses on groups as TimeViper's paper
compares them (arXiv 2511.16595).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper_fast.analysis.rows import block_of, check_rows
from timeviper_fast.model.attention import Attention, attend_last
from timeviper_fast.model.qwen2 import Rotary

__all__ = ["attention_group_mass", "attention_rows", "projected"]


def projected(mixer: Attention, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
    """Queries (n, nheads, headdim) and keys (n, nkvheads, headdim) of a layer's input.

    Args:
        mixer: the layer's attention.
        x: (1, n, d_model), behind the layer's norm.
        rotary: the tokens' positions; None where attention has none.

    Returns:
        Both in float32; in float64 of a float64 model.
    """
    q, k = (proj(x).unflatten(-1, (-1, mixer.head_dim)) for proj in (mixer.q_proj, mixer.k_proj))
    if rotary is not None:
        q, k = rotary.turn(q), rotary.turn(k)
    wide = torch.promote_types(x.dtype, torch.float32)
    return q[0].to(wide), k[0].to(wide)


def attention_group_mass(q: Tensor, k: Tensor, indicator: Tensor) -> Tensor:
    """Mass of every row on each group.

    The columns of `indicator` are padded to the head's width: PyTorch's fused CPU kernel needs
    values of the keys' width, and other widths take the path that stores all rows by all columns.
    One key head is processed at a time, with its query heads. Memory is linear: a few times
    n (nheads / nkvheads) headdim numbers, and the result.

    Args:
        q: (n, nheads, headdim), the last n of m tokens, with rotary positions applied.
        k: (m, nkvheads, headdim), likewise.
        indicator: (m, groups), 1 where a token belongs to a group; groups may overlap.

    Returns:
        (nheads, n, groups) of q's dtype. Over groups that partition the tokens a row sums to 1.
    """
    width = q.shape[-1]
    grouped = q.unflatten(1, (k.shape[1], -1))
    heads = []
    for head in range(k.shape[1]):
        # key heads are expanded, which is no copy; query heads of one key head share them
        rows = grouped[:, head][None]
        keys = k[None, :, head, None].expand(-1, -1, rows.shape[2], -1)
        parts = []
        for columns in indicator.to(q).split(width, dim=1):
            values = F.pad(columns, (0, width - columns.shape[1]))
            out = attend_last(rows, keys, values[None, :, None].expand_as(keys))
            parts.append(out[0, ..., : columns.shape[1]])
        heads.append(torch.cat(parts, -1).transpose(0, 1))
    return torch.cat(heads)


def attention_rows(q: Tensor, k: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chosen rows of P by all columns, some rows at a time, computed in float64.

    Args:
        q, k: as in `attention_group_mass`.
        rows: (r,) int64 numbers among the m tokens, of those that have a query.

    Yields:
        (b,) of `rows` and their weights (nheads, b, m) float64, 0 behind the row itself. A block
        has at most 2^24 weights, or one row.

    Raises:
        ValueError: a row without a query.
    """
    length, first = len(k), len(k) - len(q)
    check_rows("attention_rows", rows, first, length)
    keys, scale = k.double(), 1.0 / math.sqrt(q.shape[-1])
    columns = torch.arange(length, device=q.device)
    for block in rows.to(q.device).split(block_of(q.shape[1] * length)):
        chosen = q[block - first].double().unflatten(1, (k.shape[1], -1)) * scale
        logits = torch.einsum("bgrd,mgd->grbm", chosen, keys).flatten(0, 1)
        logits.masked_fill_(columns > block[:, None], -math.inf)
        yield block, logits.softmax(-1)
