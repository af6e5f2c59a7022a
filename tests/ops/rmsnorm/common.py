"""Inputs of the norms and a float64 row loop to compare with."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.common import randn

BLOCK = "tvkernels.rmsnorm.reference.BLOCK_ELEMENTS"


def naive_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    z: torch.Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> torch.Tensor:
    """One row and one group at a time, sums written out, one rounding at the end."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dim = x.shape[-1]
    size = group_size or dim
    rows = []
    for r in range(x.numel() // dim):
        v = x.reshape(-1, dim)[r].to(wide)
        gate = None
        if z is not None:
            zr = z.reshape(-1, dim)[r].to(wide)
            gate = zr / (1 + torch.exp(-zr))
        if gate is not None and not norm_before_gate:
            v = v * gate
        groups = []
        for g in range(0, dim, size):
            part = v[g : g + size]
            if not is_rms_norm:
                part = part - part.sum() / size
            groups.append(part / torch.sqrt((part * part).sum() / size + eps))
        y = torch.cat(groups) * weight.to(wide)
        y = y if bias is None else y + bias.to(wide)
        rows.append(y * gate if gate is not None and norm_before_gate else y)
    return torch.stack(rows).reshape(x.shape).to(x.dtype)


def norm_inputs(**changes: Any) -> dict[str, Any]:
    inputs = {
        "x": randn(2, 5, 24, seed=1),
        "weight": randn(24, seed=2),
        "bias": randn(24, seed=3),
        "z": randn(2, 5, 24, seed=4),
        "eps": 1e-5,
        "group_size": 8,
        "norm_before_gate": False,
    }
    return {**inputs, **changes}
