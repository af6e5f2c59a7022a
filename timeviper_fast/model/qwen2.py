"""What Qwen2 and Qwen2.5 add to the layers of `nemotron_h.py`: rotary positions and a gated MLP.

A block of theirs is two layers of the stack: attention, whose queries and keys are rotated, then
the MLP. Source: transformers' Qwen2, and RoFormer (arXiv 2104.09864).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timeviper_fast.config import BackboneConfig

__all__ = ["GatedMlp", "Rotary"]


class Rotary(NamedTuple):
    """Cosines and sines of the rotary positions of some tokens.

    Channels i and i + headdim / 2 of a head turn by the angle position * theta ** (-2 i / headdim).
    The tables are float32 in 16 bit models too: 16 bit cannot hold a position above some hundreds.

    Attributes:
        cos, sin: (seqlen, headdim), or (batch, seqlen, headdim) where rows stand at unequal
            positions; float32, or float64 for a float64 model; both halves are equal.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(
        cls, config: BackboneConfig, starts: Sequence[int], lengths: Sequence[int], like: Tensor
    ) -> Rotary:
        """Positions start, start + 1, ... of each sample, one sample behind the other.

        Args:
            config: its head_dim and rope_theta.
            starts, lengths: first position and tokens of each sample.
            like: on the device where the tables are wanted, and of the model's dtype.
        """
        # create them on the device: a copy from the host would be a host sync
        arange = partial(torch.arange, device=like.device)
        positions = [arange(start, start + n) for start, n in zip(starts, lengths)]
        return cls.at(config, torch.cat(positions), like)

    @classmethod
    def at(cls, config: BackboneConfig, positions: Tensor, like: Tensor) -> Rotary:
        """Integer positions (seqlen,) or (batch, seqlen); `like` as in `of`."""
        wide = torch.promote_types(like.dtype, torch.float32)
        share = torch.arange(0, config.head_dim, 2, dtype=wide, device=like.device)
        rates = (1.0 / config.rope_theta ** (share / config.head_dim)).repeat(2)
        angles = positions.to(wide)[..., None] * rates
        return cls(angles.cos(), angles.sin())

    @property
    def last(self) -> Rotary:
        """That of the last token."""
        return Rotary(self.cos[-1:], self.sin[-1:])

    def turn(self, x: Tensor) -> Tensor:
        """`x` (batch, seqlen, nheads, headdim) at its positions, computed in the tables' dtype."""
        first, second = x.to(self.cos.dtype).chunk(2, -1)
        swapped = torch.cat([-second, first], -1)
        return (x * self.cos.unsqueeze(-2) + swapped * self.sin.unsqueeze(-2)).to(x.dtype)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width, bias = config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=bias)

    def forward(self, x: Tensor, packing: object, state: None) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
