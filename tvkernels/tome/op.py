"""Token merging (ToMe): rounds of bipartite matching that merge similar tokens into their mean.

Each round splits the p tokens into even and odd positions and merges the r best matched even
tokens, r = min(p - num_tokens, p // 2), each into the odd token of highest cosine similarity:

    metric = mean over num_heads channel groups of x;  score_i = max_j cos(metric_2i, metric_2j+1)

Source: Bolya et al. 2023 (arXiv 2210.09461), in the form of TimeViper (arXiv 2511.16595), which
merges after the vision encoder down to a fixed count.
"""

from __future__ import annotations

from typing import Any

import torch

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import expect_dtype, expect_int, expect_ndim, fail, is_int
from tvkernels.core.library import kernel_op
from tvkernels.core.plain import first_order
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
        num_tokens: tokens left, 1 to seqlen; seqlen returns a copy of x.
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
    dtype throughout. Ties go to the lower index everywhere. The reference compares similarities
    rounded to float32; on Triton they are off by up to 3e-7, for float64 too, and count as 1 above
    1 - 5e-7, while equal tokens, and merged groups of them, tie exactly. A zero vector has
    similarity 0. What is not finite counts as 0 in a comparison and stays in its token's slot. On a
    device without float64 (MPS) the reference compares in float32, with a warning; equal tokens may
    then tie otherwise. Gradients flow through the values only, of first order on Triton: dx[t] =
    dtokens[slot of t] / its size. Memory beyond the result is linear in seqlen and dim / num_heads
    wide; the reference adds one float32 copy of 16-bit input, and Triton's is bounded however large
    the batch.
    """
    _check(x, num_tokens, num_heads, order)
    # nothing to merge: launch nothing
    idle = num_tokens == x.shape[1] or x.numel() == 0
    if backend_for(x, "tome") == "reference" or idle:
        return tome_merge_ref(x, num_tokens, num_heads=num_heads, order=order)
    return ToMeResult(*_Merge.apply(x, num_tokens, num_heads, order))


def _check(x: torch.Tensor, num_tokens: int, num_heads: int, order: str) -> None:
    op = "tome_merge"
    expect_ndim(op, "x", x, "(batch, seqlen, dim)", 3)
    expect_dtype(op, "x", x)
    _, seqlen, dim = x.shape
    # a text that names seqlen is made only for an error: torch.compile would specialise the length
    if not is_int(num_tokens) or not 1 <= num_tokens <= seqlen:
        rule = f"be an int between 1 and seqlen {seqlen} (merging only shrinks)"
        fail(op, "num_tokens", rule, repr(num_tokens))
    expect_int(op, "num_heads", num_heads, "be an int of at least 1", 1)
    if dim % num_heads:
        fail(op, "num_heads", f"divide dim {dim} (the metric averages equal groups)", num_heads)
    if not isinstance(order, str) or order not in ORDERS:
        fail(op, "order", f"be one of {', '.join(ORDERS)}", repr(order))


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, num_tokens: int, num_heads: int, order: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, sizes, slots = _merge_fwd(x, num_tokens, num_heads, order)
        ctx.save_for_backward(slots, sizes)
        ctx.mark_non_differentiable(sizes, slots)
        return tokens, sizes, slots

    @staticmethod
    @first_order("tome_merge")
    def backward(ctx: Any, dtokens: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        return _merge_bwd(dtokens, *ctx.saved_tensors), None, None, None


def _fake_merge_fwd(
    x: torch.Tensor, num_tokens: int, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, seqlen, dim = x.shape
    sizes = x.new_empty(batch, num_tokens, dtype=torch.int32)
    slots = x.new_empty(batch, seqlen, dtype=torch.int32)
    return x.new_empty(batch, num_tokens, dim), sizes, slots


@kernel_op("tvkernels::tome_merge_fwd", fake=_fake_merge_fwd)
def _merge_fwd(
    x: torch.Tensor, num_tokens: int, num_heads: int, order: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from tvkernels.tome.kernel import merge_forward

    return merge_forward(x, num_tokens, num_heads, order)


def _fake_merge_bwd(
    dtokens: torch.Tensor, slots: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    return dtokens.new_empty(*slots.shape, dtokens.shape[-1])


@kernel_op("tvkernels::tome_merge_bwd", fake=_fake_merge_bwd)
def _merge_bwd(dtokens: torch.Tensor, slots: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    from tvkernels.tome.kernel import merge_backward

    return merge_backward(dtokens, slots, sizes)
