"""Reference of `compact` in plain PyTorch; it is what runs on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CompactResult", "compact_ref"]


class CompactResult(NamedTuple):
    """What `compact` returns.

    kept: (batch, seqlen - n, dim), the rows that stay.
    dropped: (batch, n, dim), the rows that left; None without return_dropped.
    positions: (batch, seqlen - n), those of the rows that stay; None where none were given.
    """

    kept: Tensor
    dropped: Tensor | None
    positions: Tensor | None


def compact_ref(
    x: Tensor, dropped: Tensor, positions: Tensor | None = None, *, return_dropped: bool = False
) -> CompactResult:
    """`compact` in plain PyTorch; arguments and result are the same."""
    batch, seqlen = x.shape[:2]
    n = dropped.shape[1]
    place = torch.arange(seqlen - n, device=x.device).repeat(batch, 1)
    # dropped[j] - j rows that stay precede the j-th dropped one; searching place i among these
    # numbers counts the dropped rows before it
    in_front = dropped - torch.arange(n, device=x.device)
    kept = place + torch.searchsorted(in_front, place, right=True)
    return CompactResult(
        _take(x, kept),
        _take(x, dropped) if return_dropped else None,
        None if positions is None else positions.gather(1, kept),
    )


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x (batch, seqlen, dim) at index (batch, n) -> (batch, n, dim)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
