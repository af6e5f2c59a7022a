"""Helpers that references share; like them, plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gather_rows", "no_autocast", "scatter_rows"]


def no_autocast(x: Tensor) -> torch.autocast:
    """A context in which autocast does not lower matrix products on the device of `x`."""
    # autocast does not know the meta device; nothing is computed there, so name the CPU
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def gather_rows(states: Tensor, indices: Tensor | None) -> Tensor:
    """The rows that `indices` name (None: all); a padding entry (negative) reads row 0."""
    return states if indices is None else states.index_select(0, indices.clamp_min(0))


def scatter_rows(states: Tensor, indices: Tensor, new: Tensor) -> None:
    """Write `new` into the rows named by `indices`; padding entries (negative) write nothing.

    No value is read on the host, so there is no host sync: a padding entry repeats the write of a
    live entry; where no entry is live, all of them write row 0 back unchanged.
    """
    if not indices.shape[0]:
        return
    live = indices >= 0
    source = torch.where(live, torch.arange(len(live), device=live.device), live.int().argmax())
    row = indices.clamp_min(0).long()[source]
    keep = live[source].view(-1, *[1] * (states.ndim - 1))
    states.index_copy_(0, row, new.to(states.dtype)[source].where(keep, states[row]))
