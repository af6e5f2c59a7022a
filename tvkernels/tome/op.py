"""Token merging (ToMe): rounds of bipartite matching that merge similar tokens into their mean.

Each round splits the p tokens into even and odd positions and merges the r best matched even
tokens, r = min(p - num_tokens, p // 2), each into the odd token of highest cosine similarity:

    metric = mean over num_heads channel groups of x;  score_i = max_j cos(metric_2i, metric_2j+1)

Source: Bolya et al. 2023 (arXiv 2210.09461), in the form of TimeViper (arXiv 2511.16595), which
merges after the vision encoder down to a fixed count.
"""

from __future__ import annotations

import torch

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import expect_dtype, expect_int, expect_ndim, fail
from tvkernels.tome.reference import ToMeResult, tome_merge_ref

__all__ = ["ToMeResult", "tome_merge"]

ORDERS = ("raw", "ascending", "descending")


def tome_merge(
    x: torch.Tensor, num_tokens: int, *, num_heads: int = 16, order: str = "raw"
) -> ToMeResult:
    """Merge each row's seqlen tokens into num_tokens by rounds of bipartite matching.

    tokens[s] = mean of x[t] over the input tokens t with assignment[t] == s.

    Args:
        x: (batch, seqlen, dim); float32, bfloat16, float16 or float64.
        num_tokens: tokens left, 1 to seqlen; seqlen returns x itself.
        num_heads: channel groups averaged into the metric; divides dim.
        order: slot order. "raw": after each round the even tokens that stay, best matched first,
            then the odd tokens. "ascending" / "descending": by final size, ties by raw slot.

    Returns:
        ToMeResult(tokens (batch, num_tokens, dim) in x's dtype, sizes (batch, num_tokens) int32,
        assignment (batch, seqlen) int32, the slot of each input token in the returned order).

    Raises:
        ValueError: a shape, dtype, count or order is not as above.
        BackendUnavailable: the backend due for x is not there.

    Numerics: computes in float32 (float64 for float64) and rounds once, where upstream works in x's
    dtype throughout. Ties go to the lower index everywhere. A zero vector has similarity 0. A token
    that is not finite may spoil every slot of its row. Gradients flow through the values only:
    dx[t] = dtokens[slot of t] / its size. Memory beyond the result is linear in seqlen and dim /
    num_heads wide; 16-bit input adds one float32 copy.
    """
    _check(x, num_tokens, num_heads, order)
    backend_for(x, "tome")
    return tome_merge_ref(x, num_tokens, num_heads=num_heads, order=order)


def _check(x: torch.Tensor, num_tokens: int, num_heads: int, order: str) -> None:
    op = "tome_merge"
    expect_ndim(op, "x", x, "(batch, seqlen, dim)", 3)
    expect_dtype(op, "x", x)
    _, seqlen, dim = x.shape
    rule = f"be an int between 1 and seqlen {seqlen} (merging only shrinks)"
    expect_int(op, "num_tokens", num_tokens, rule, 1, seqlen)
    expect_int(op, "num_heads", num_heads, "be an int of at least 1", 1)
    if dim % num_heads:
        fail(op, "num_heads", f"divide dim {dim} (the metric averages equal groups)", num_heads)
    if order not in ORDERS:
        fail(op, "order", f"be one of {', '.join(ORDERS)}", repr(order))
