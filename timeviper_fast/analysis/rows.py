"""Chosen rows by all columns: sums of absolute weights, profiles and maps, block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from timeviper_fast.analysis.heads import HeadProfile, ProfileSums
from timeviper_fast.errors import ArgumentError

__all__ = ["RowSums", "block_of", "check_rows", "row_sums"]


class RowSums(NamedTuple):
    """Figures of chosen rows, on the CPU.

    Attributes:
        absolute: (nheads, r, groups) float64, sums of absolute weights over each group.
        profile: how the heads spread their weights in these rows.
        maps: by head, its weights (r, m) float32, signed.
    """

    absolute: Tensor
    profile: HeadProfile
    maps: dict[int, Tensor]


def row_sums(
    blocks: Iterable[tuple[Tensor, Tensor]],
    indicator: Tensor,
    heads: int,
    *,
    window: int = 64,
    maps: Collection[int] = (),
) -> RowSums:
    """Sum blocks of rows as they come.

    Memory: one block, r nheads groups sums, and r m numbers for each head of `maps`.

    Args:
        blocks: rows (b,) and weights (nheads, b, m), as `attention_rows` and `mamba_rows` yield;
            the weights are overwritten.
        indicator: (m, groups), 1 where a token belongs to a group.
        heads: of the layer.
        window: tokens that count as near, for the profile.
        maps: heads whose weights are kept.

    Raises:
        ValueError: `maps` names a head that the layer does not have.
    """
    if not all(0 <= head < heads for head in maps):
        raise ArgumentError("row_sums", "maps", f"name heads 0 .. {heads - 1}", sorted(maps))
    sums, profile = [], ProfileSums(heads, window)
    kept: dict[int, list[Tensor]] = {head: [] for head in maps}
    for rows, weights in blocks:
        for head, parts in kept.items():
            parts.append(weights[head].float().cpu())
        absolute = weights.abs_()
        sums.append((absolute @ indicator.to(absolute)).cpu())
        profile.add(rows, absolute)
    none = torch.zeros(heads, 0, indicator.shape[1], dtype=torch.float64)
    whole = {
        head: torch.cat([torch.zeros(0, len(indicator)), *parts]) for head, parts in kept.items()
    }
    return RowSums(torch.cat([none, *sums], dim=1), profile.profile, whole)


def block_of(row: int) -> int:
    """How many rows of `row` weights make a block."""
    return max(1, 2**24 // max(row, 1))


def check_rows(owner: str, rows: Tensor, first: int, length: int) -> None:
    """Refuse rows that are no int64 numbers (r,) in first .. length - 1."""
    good = rows.ndim == 1 and rows.dtype == torch.int64
    if not good:
        got = f"{tuple(rows.shape)} {rows.dtype}"
        raise ArgumentError(owner, "rows", "be a tensor (r,) of int64", got)
    if rows.numel() and not first <= int(rows.min()) <= int(rows.max()) < length:
        got = f"{int(rows.min())} .. {int(rows.max())}"
        raise ArgumentError(owner, "rows", f"lie in {first} .. {length - 1}", got)
