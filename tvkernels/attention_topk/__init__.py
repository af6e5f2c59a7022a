"""Token selection: `attention_topk`, `attention_topk_hidden`, `uniform_topk`, `dropped_indices`."""

from tvkernels.attention_topk.op import (
    TopKResult,
    attention_topk,
    attention_topk_hidden,
    dropped_indices,
    uniform_topk,
)

__all__ = [
    "TopKResult",
    "attention_topk",
    "attention_topk_hidden",
    "dropped_indices",
    "uniform_topk",
]
