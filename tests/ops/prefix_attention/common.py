"""Inputs of prefix_attention and a naive form to compare with."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from tests.contract import on_device

# by name, because tvkernels.prefix_attention, the function, hides the folder of the same name
REFERENCE = import_module("tvkernels.prefix_attention.reference")


def naive(
    q: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Row by row and head by head, on the prefix and the written tail put together."""
    n, nheads, headdim = q.shape[1:]
    out = torch.empty_like(q)
    for r, length in enumerate(lengths.tolist()):
        k, v = key[r, :length], value[r, :length]
        m = 0
        if prefix is not None:
            shared = [x[r if len(x) > 1 else 0].to(q.dtype) for x in prefix]
            k, v, m = torch.cat([shared[0], k]), torch.cat([shared[1], v]), len(shared[0])
        ends = m + length - n + torch.arange(n, device=q.device)
        hidden = torch.arange(m + length, device=q.device) > ends[:, None]
        for h in range(nheads):
            g = h // (nheads // key.shape[2])
            logits = q[r, :, h] @ k[:, g].mT * (headdim**-0.5 if scale is None else scale)
            out[r, :, h] = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, g]
    return out


def make(
    lengths: tuple[int, ...] = (9, 3, 14), n: int = 3, m: int = 37, capacity: int = 17,
    nheads: int = 4, nkvheads: int = 2, headdim: int = 8, shared: bool = True, seed: int = 0,
    dtype: torch.dtype = torch.float32, garbage: float = torch.nan,
) -> dict[str, Any]:  # fmt: skip
    """What lies behind the lengths is `garbage`."""
    g = torch.Generator().manual_seed(seed)
    batch = len(lengths)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    q = randn(batch, n, nheads, headdim)
    key, value = (randn(batch, capacity, nkvheads, headdim) for _ in range(2))
    for x in (key, value):
        for row, length in zip(x, lengths):
            row[length:] = garbage
    prefix = tuple(randn(1 if shared else batch, m, nkvheads, headdim) for _ in range(2))
    made = {"q": q, "key": key, "value": value, "lengths": torch.tensor(lengths), "prefix": prefix}
    return on_device(made)
