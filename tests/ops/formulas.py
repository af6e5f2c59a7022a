"""The formula of each op in float64, written apart from the references: what NaN and infinity do.

Each takes the op's arguments and gives its results, then the states that the op writes in place.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from tests.contract import as_tuple
from tests.ops.attention_topk.common import naive_topk
from tests.ops.causal_conv1d.common import naive_conv
from tests.ops.causal_conv1d.test_update import naive_update
from tests.ops.compact.common import naive as naive_compact
from tests.ops.decode_step.common import naive_step as naive_decode_step
from tests.ops.gated_cross_attention.common import naive as naive_attention
from tests.ops.prefix_attention.common import naive as naive_prefix_attention
from tests.ops.replay_state_update.common import naive_flush, naive_replay
from tests.ops.rmsnorm.common import naive_norm
from tests.ops.selective_state_update.common import naive_step
from tests.ops.ssd.common import naive_scan
from tests.ops.test_split_conv1d_scan import naive_mixer
from tests.ops.tome.common import naive_tome

Tensors = dict[str, Any]


def hidden_topk(
    q: Any, hidden: Any, k_weight: Any, norm_weight: Any, k_bias: Any, rope: Any, **how: Any
) -> Any:
    x = hidden / torch.sqrt((hidden * hidden).mean(-1, keepdim=True) + 1e-6) * norm_weight
    keys = (x @ k_weight.T + k_bias).unflatten(-1, (-1, q.shape[-1]))
    first, second = keys.chunk(2, -1)
    cos, sin = (table[:, None] for table in rope)
    return naive_topk(q, keys * cos + torch.cat([-second, first], -1) * sin, **how)


def conv_update(x: torch.Tensor, **given: Any) -> Any:
    out, state = naive_update(x[..., None], **given)
    return out[..., 0], state


def last_rows(x: torch.Tensor, cu_seqlens: torch.Tensor, state_len: int) -> torch.Tensor:
    parts = [x[a:b] for a, b in pairwise(cu_seqlens.tolist())]
    padded = [torch.cat([x.new_zeros(state_len, x.shape[1]), part])[-state_len:] for part in parts]
    return torch.stack(padded).mT


def rms_norm(x: Any, weight: Any, eps: float, residual: Any) -> Any:
    total = x + residual
    return naive_norm(total, weight, None, eps=eps, is_rms_norm=True), total


def merged(x: torch.Tensor, num_tokens: int) -> Any:
    """Tokens that are not finite count as 0 where they are compared."""
    metric = x.unflatten(-1, (16, -1)).mean(2)
    metric = torch.where(metric.isfinite(), metric, 0.0)
    _, sizes, slots = naive_tome(metric, num_tokens, 1)
    means = [
        torch.stack([row[at == s].mean(0) for s in range(num_tokens)]) for row, at in zip(x, slots)
    ]
    return torch.stack(means), sizes, slots


FORMULAS: dict[str, Callable[..., Any]] = {
    "attention_topk": naive_topk,
    "attention_topk_hidden": hidden_topk,
    "causal_conv1d_fn": naive_conv,
    "causal_conv1d_update": conv_update,
    "causal_conv1d_varlen_states": last_rows,
    "compact": lambda return_dropped, **given: naive_compact(**given),
    "gated_cross_attention": naive_attention,
    "layernorm_fn": naive_norm,
    "mamba2_decode_step": naive_decode_step,
    "mamba_chunk_scan_combined": naive_scan,
    "mamba_split_conv1d_scan_combined": naive_mixer,
    "prefix_attention": naive_prefix_attention,
    "relu2": lambda x: torch.where(x <= 0, 0.0, x) ** 2,
    "replay_flush": naive_flush,
    "replay_state_update": naive_replay,
    "rms_norm": rms_norm,
    "rmsnorm_fn": lambda **given: naive_norm(**given, is_rms_norm=True),
    "selective_state_update": naive_step,
    "tome_merge": merged,
}


def formula(op: str, inputs: Tensors) -> list[torch.Tensor]:
    wide = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    return [x for x in as_tuple(FORMULAS[op](**wide)) if x is not None]
