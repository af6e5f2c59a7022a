"""Inputs of gated_cross_attention and a naive float64 form to compare with."""

from __future__ import annotations

from importlib import import_module

import torch

from tests.contract import on_device
from tests.ops import common

DTYPES = [*common.DTYPES, torch.float64]
# by name, because tvkernels.gated_cross_attention, the function, hides the folder of the same name
REFERENCE = import_module("tvkernels.gated_cross_attention.reference")
DIFFERENTIABLE = ("text", "q", "k", "v", "alpha")


def learnt(dtype: torch.dtype, *others: str) -> list[str]:
    """The inputs whose gradients the contract checks. At 16 bit without alpha, because the error of a
    single number is chance there; test_the_gradient_of_the_gate_in_16_bits looks at many."""
    names = [*DIFFERENTIABLE, *others]
    return names if dtype.itemsize > 2 else [name for name in names if name != "alpha"]


def naive(
    text: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    alpha: torch.Tensor,
    out_proj: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Head by head, with the whole (n, m) map."""
    heads = []
    for h in range(q.shape[2]):
        g = h // (q.shape[2] // k.shape[2])
        weights = q[:, :, h] @ k[:, :, g].transpose(1, 2) * (scale or q.shape[3] ** -0.5)
        heads.append(weights.softmax(-1) @ v[:, :, g])
    update = torch.cat(heads, -1)
    if out_proj is not None:
        update = update @ out_proj.T
    return text + torch.tanh(alpha) * update


def make(
    batch: int = 2, n: int = 7, m: int = 45, nheads: int = 6, nkvheads: int = 2, headdim: int = 8,
    d_model: int = 20, alpha: float = 0.7, seed: int = 0,
) -> dict[str, torch.Tensor]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    width = nheads * headdim
    inputs = {
        "text": torch.randn(batch, n, d_model, generator=g),
        "q": torch.randn(batch, n, nheads, headdim, generator=g),
        "k": torch.randn(batch, m, nkvheads, headdim, generator=g),
        "v": torch.randn(batch, m, nkvheads, headdim, generator=g),
        "alpha": torch.tensor(alpha),
        "out_proj": torch.randn(d_model, width, generator=g) / width**0.5,
    }
    return on_device(inputs)


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bytes, so that -0.0 differs from 0.0."""
    return x.flatten().contiguous().view(torch.uint8)
