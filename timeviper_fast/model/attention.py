"""Causal grouped-query attention: over packed samples, or over the keys and values of a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timeviper_fast.config import BackboneConfig
from timeviper_fast.model.cache import AttentionState
from timeviper_fast.model.stack import Packing
from tvkernels import prefix_attention

__all__ = ["Attention", "attend", "attend_last"]


class Attention(nn.Module):
    """Causal grouped-query attention, with rotary positions in Qwen2; scale 1 / sqrt(head_dim)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.head_dim, bias = config.head_dim, config.attention_bias
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_width, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=bias)
        o_bias = bias and config.family != "qwen2"
        self.o_proj = nn.Linear(q_width, config.hidden_size, bias=o_bias)

    def forward(self, x: Tensor, packing: Packing, state: AttentionState | None) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim))
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if packing.rotary is not None:
            q, k = packing.rotary.turn(q), packing.rotary.turn(k)
        return self.o_proj(self._attend(q, k, v, packing, state).flatten(2))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, state: AttentionState | None
    ) -> Tensor:
        """(batch, seqlen, nheads, headdim) of q, and of k and v with nkvheads, in q's shape."""
        if state is not None:
            state.append(k, v)
            return attend(q, state)
        samples = zip(*(t.split(packing.lengths, dim=1) for t in (q, k, v)))
        return torch.cat([attend_last(*sample) for sample in samples], dim=1)


def attend(q: Tensor, state: AttentionState) -> Tensor:
    """Causal attention of the last n tokens of each row over all that the state holds.

    Several tokens of rows without a prefix take PyTorch's fused attention; a prefix that rows
    share, and rows of unequal lengths, take `prefix_attention`.
    """
    if state.prefix is None and state.even and q.shape[1] > 1:
        return attend_last(q, *state.written)
    return prefix_attention(q, *state.written, state.lengths, state.prefix)


def attend_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the LAST n of m tokens.

    q (batch, n, nheads, headdim), k and v (batch, m, nkvheads, headdim). Where torch has no fused
    kernel for the bottom-right mask (on the CPU, and in float32 on CUDA) it materialises the mask.
    Queries are then processed in blocks of 256, which bounds the mask at 256 x m.
    """
    n, m = q.shape[1], k.shape[1]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if n == m or n == 1:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=n > 1, enable_gqa=True)
        return out.transpose(1, 2)
    # imported here: the import makes torch load its compiler, and with it Triton
    from torch.nn.attention.bias import causal_lower_right

    block = n if q.is_cuda and q.dtype != torch.float32 else 256
    outs = []
    for start in range(0, n, block):
        rows = q[:, :, start : start + block]
        seen = m - n + start + rows.shape[2]
        bias = causal_lower_right(rows.shape[2], seen)
        keys, values = k[:, :, :seen], v[:, :, :seen]
        outs.append(
            F.scaled_dot_product_attention(rows, keys, values, attn_mask=bias, enable_gqa=True)
        )
    return torch.cat(outs, dim=2).transpose(1, 2)
