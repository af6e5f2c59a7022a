"""Inputs of compact and a form of plain lists to compare with."""

from __future__ import annotations

from typing import Any

import torch

from tests.contract import (
    device,
)
from tvkernels.compact import compact


def naive(
    x: torch.Tensor, dropped: torch.Tensor, positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Row by row: each goes to the end of one of two lists."""
    parts: tuple[list[Any], ...] = ([], [], [])
    for b, leaving in enumerate(dropped.tolist()):
        stays = [t for t in range(x.shape[1]) if t not in leaving]
        parts[0].append(x[b, stays])
        parts[1].append(x[b, leaving])
        parts[2].append(stays if positions is None else positions[b, stays].tolist())
    kept, rest = torch.stack(parts[0]), torch.stack(parts[1])
    return kept, rest, torch.tensor(parts[2], dtype=torch.int64, device=x.device)


def everything(
    x: torch.Tensor, dropped: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return tuple(compact(x, dropped, positions, return_dropped=True))  # type: ignore[arg-type]


def inputs(seqlen: int = 75, dim: int = 37, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two sequences, each without a third of its rows; a run of neighbours leaves too."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, seqlen, dim, generator=g)
    dropped = torch.stack([torch.randperm(seqlen, generator=g)[: seqlen // 3] for _ in range(2)])
    positions = torch.randint(0, 10**12, (2, seqlen), generator=g)
    found = {"x": x, "dropped": dropped.sort(1).values, "positions": positions}
    return {name: value.to(device()) for name, value in found.items()}
