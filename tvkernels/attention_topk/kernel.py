"""Triton kernels of token selection: scores (scores_kernel.py), then top-k (select_kernel.py)."""

import torch

from tvkernels.attention_topk.scores_kernel import (
    in_parts,
    scores_of_hidden,
    scores_of_keys,
    scores_of_rotated,
)
from tvkernels.attention_topk.select_kernel import topk_in_order


def select_by_keys(q, k, keep, span, scale, cu):
    return _selected(q, keep, span, lambda: scores_of_keys(q, k, span, scale, cu))


def select_by_hidden(q, hidden, weight, bias, norm, eps, cos, sin, tail, keep, span, scale, cu):
    def scores():
        parts = in_parts(hidden, tail)
        if cos is None:
            # the bias adds the same to all logits of a head: the softmax ignores it
            return scores_of_hidden(q, parts, weight, norm, eps, span, scale, cu)
        return scores_of_rotated(q, parts, weight, bias, norm, eps, cos, sin, span, scale, cu)

    return _selected(q, keep, span, scores)


def _selected(q, keep, span, scores_of):
    """Kept, dropped and scores. An empty batch or span launches nothing."""
    batch, length = len(q), span[1]
    if batch * length:
        scores = scores_of()
        return *topk_in_order(scores, keep), scores
    kept, dropped = (q.new_empty(batch, n, dtype=torch.int64) for n in (keep, length - keep))
    return (
        kept,
        dropped,
        q.new_empty(batch, length, dtype=torch.promote_types(q.dtype, torch.float32)),
    )
