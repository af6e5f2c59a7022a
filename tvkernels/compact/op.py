"""Take rows out of a sequence in one pass: the others close the gaps, their positions move along.

    kept = x without the rows `dropped`,  rest = x[dropped],  both in order

Source: the compaction behind every dropping of tokens (FastV, arXiv 2403.06764; PyramidDrop, arXiv
2410.17247; TimeViper, arXiv 2511.16595).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvkernels.compact.reference import CompactResult, compact_ref
from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    INDEX_DTYPES,
    expect_dtype,
    expect_flags,
    expect_ndim,
    expect_same_device,
    expect_shape,
    fail,
    on_host,
)
from tvkernels.core.library import kernel_op
from tvkernels.core.plain import first_order

__all__ = ["CompactResult", "compact"]


def compact(
    x: Tensor, dropped: Tensor, positions: Tensor | None = None, *, return_dropped: bool = False
) -> CompactResult:
    """Take the rows `dropped` out of each sequence, and close the gaps.

    kept = x without x[dropped], in order. For samples packed in one row, count the indices from the
    first token of the row.

    Args:
        x: (batch, seqlen, dim), any strides.
        dropped: (batch, n) int64, ascending, distinct, each in [0, seqlen): the same count of every
            sequence. `attention_topk` names them, relative to its span's start.
        positions: (batch, seqlen) int32 or int64, a number that moves with each row, as its
            position or label; or None.
        return_dropped: also return the dropped rows.

    Returns:
        CompactResult(kept (batch, seqlen - n, dim), dropped (batch, n, dim) or None, positions
        (batch, seqlen - n) or None), new tensors.

    Raises:
        ValueError: a shape or dtype is not as above or, on the CPU, `dropped` does not ascend
            within [0, seqlen).
        BackendUnavailable: the backend due for x is not there.

    Numerics: copies bits. Gradients flow to x; each row has one destination, so nothing is summed.
    On Triton one launch each way, first order gradients only. Nothing is read back from the device;
    a list there that does not ascend gives wrong rows, but no other memory is touched.
    Source: TimeViper (arXiv 2511.16595), the step behind its selection.
    """
    _check(x, dropped, positions)
    expect_flags("compact", return_dropped=return_dropped)
    if backend_for(x, "compact") == "reference":
        return compact_ref(x, dropped, positions, return_dropped=return_dropped)
    kept, rest, moved = _Compact.apply(x, dropped, positions, return_dropped)
    return CompactResult(
        kept, rest if return_dropped else None, None if positions is None else moved
    )


def _check(x: Tensor, dropped: Tensor, positions: Tensor | None) -> None:
    op = "compact"
    expect_ndim(op, "x", x, "(batch, seqlen, dim)", 3)
    expect_dtype(op, "x", x)
    batch, seqlen = x.shape[:2]
    expect_shape(op, "dropped", dropped, "(batch, n)", (batch, None))
    expect_dtype(op, "dropped", dropped, (torch.int64,))
    if dropped.shape[1] > seqlen:
        fail(op, "dropped", f"hold at most the {seqlen} rows of x", dropped.shape[1])
    if positions is not None:
        expect_shape(op, "positions", positions, "(batch, seqlen)", (batch, seqlen))
        expect_dtype(op, "positions", positions, INDEX_DTYPES)
    expect_same_device(op, x=x, dropped=dropped, positions=positions)
    if on_host(dropped) and dropped.numel():
        ascends = dropped.diff(dim=1) > 0
        if not bool(ascends.all()):
            # show only the first pair that does not: the list may have 100,000 indices
            row, at = (~ascends).nonzero()[0].tolist()
            pair = dropped[row, at : at + 2].tolist()
            fail(op, "dropped", "ascend", f"{pair[0]}, then {pair[1]}")
        least, most = int(dropped.min()), int(dropped.max())
        if least < 0 or most >= seqlen:
            fail(op, "dropped", f"lie within [0, {seqlen})", f"{least} to {most}")


class _Compact(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor, positions: Tensor | None, return_dropped: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept, rest, moved = _compact_fwd(x, dropped, positions, return_dropped)
        ctx.save_for_backward(dropped)
        ctx.set_materialize_grads(False)
        ctx.shape = x.shape
        ctx.mark_non_differentiable(moved, *(() if return_dropped else (rest,)))
        return kept, rest, moved

    @staticmethod
    @first_order("compact")
    def backward(
        ctx: Any, dkept: Tensor | None, drest: Tensor | None, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        (dropped,) = ctx.saved_tensors
        if dkept is None:
            if drest is None:
                return None, None, None, None
            batch, seqlen, dim = ctx.shape
            # kept has no gradient: expand one zero instead of allocating them
            dkept = drest.new_zeros(()).expand(batch, seqlen - dropped.shape[1], dim)
        return _compact_bwd(dkept, drest, dropped), None, None, None


def _fake_fwd(
    x: Tensor, dropped: Tensor, positions: Tensor | None, return_dropped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, seqlen, dim), n = x.shape, dropped.shape[1]
    moved = x.new_empty(0) if positions is None else positions.new_empty(batch, seqlen - n)
    rest = x.new_empty((batch, n, dim) if return_dropped else (0,))
    return x.new_empty(batch, seqlen - n, dim), rest, moved


@kernel_op("tvkernels::compact_fwd", fake=_fake_fwd)
def _compact_fwd(
    x: Tensor, dropped: Tensor, positions: Tensor | None, return_dropped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from tvkernels.compact.kernel import compact_forward

    return compact_forward(x, dropped, positions, return_dropped)


def _fake_bwd(dkept: Tensor, drest: Tensor | None, dropped: Tensor) -> Tensor:
    batch, left, dim = dkept.shape
    return dkept.new_empty(batch, left + dropped.shape[1], dim)


@kernel_op("tvkernels::compact_bwd", fake=_fake_bwd)
def _compact_bwd(dkept: Tensor, drest: Tensor | None, dropped: Tensor) -> Tensor:
    from tvkernels.compact.kernel import compact_backward

    return compact_backward(dkept, drest, dropped)
