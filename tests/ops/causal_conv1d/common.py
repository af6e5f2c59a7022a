"""Inputs of causal_conv1d and a float64 tap loop to compare with."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch

from tests.ops.common import randn


def blocks_of(elements: int) -> Any:
    """Blocks so small that a test's input has several."""
    room = "tvkernels.causal_conv1d.reference"
    return patch.multiple(room, BLOCK_ELEMENTS=elements, MIN_ROWS=1)


def naive_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
) -> Any:
    """Token by token and tap by tap in one wide dtype, with one rounding at the end."""
    wide = torch.promote_types(x.dtype, torch.float32)
    (batch, dim, seqlen), width = x.shape, weight.shape[1]
    past = x.new_zeros(batch, dim, width - 1) if initial_states is None else initial_states
    inputs = [past[:, :, i] for i in range(width - 1)] + [x[:, :, t] for t in range(seqlen)]
    # the inputs before token 0 belong to its sequence
    number = None if seq_idx is None else [seq_idx[:, max(t, 0)] for t in range(1 - width, seqlen)]
    outs = []
    for t in range(seqlen):
        y = x.new_zeros(batch, dim, dtype=wide) if bias is None else bias.to(wide)
        for k in range(width):
            term = weight[:, width - 1 - k].to(wide) * inputs[width - 1 + t - k].to(wide)
            if number is not None:
                ours = number[width - 1 + t - k] == seq_idx[:, t]
                term = torch.where(ours[:, None], term, 0.0)
            y = y + term
        y = y / (1 + torch.exp(-y)) if activation else y
        outs.append(y if seq_idx is None else torch.where(seq_idx[:, t, None] < 0, 0.0, y))
    out = torch.stack(outs, dim=2).to(x.dtype)
    if not return_final_states:
        return out
    final = torch.cat([past, x], dim=2)[..., seqlen:]
    if number is not None:
        ours = torch.stack(number, 1)[:, None, seqlen:] == seq_idx[:, None, -1:]
        final = torch.where(ours & (seq_idx[:, None, -1:] >= 0), final, 0.0)
    return out, final


def conv_inputs(seqlen: int = 23, width: int = 4, **changes: Any) -> dict[str, Any]:
    inputs = {
        "x": randn(2, 6, seqlen, seed=1),
        "weight": randn(6, width, seed=2),
        "bias": randn(6, seed=3),
        "activation": "silu",
    }
    return {**inputs, **changes}


SEQ_IDX = torch.tensor([[0] * 2 + [1] * 9 + [5] * 1 + [2] * 11, [0] * 18 + [-1] * 5])
# a first sequence and a last one shorter than the filter; a row that begins with padding
SHORT_ENDS = torch.tensor([[7] + [3] * 20 + [9] * 2, [-1] * 2 + [0] * 21])
LEAVES = ("x", "weight", "bias", "initial_states")


def leaves_of(inputs: dict[str, Any]) -> list[str]:
    return [name for name in LEAVES if inputs.get(name) is not None]


def project_and_split(golden: dict[str, torch.Tensor], u: torch.Tensor) -> torch.Tensor:
    return (u @ golden["weight.in_proj.weight"].T)[..., 320 : 320 + 448].mT


FAR = 3 * 2**29
X, W, S = torch.zeros(2, 8, 5), torch.zeros(8, 4), torch.zeros(2, 8, 3)
ROWS = torch.zeros(2, dtype=torch.int32)
