"""Token selection: which tokens of a span a few query rows attend to most.

    scores[t] = mean over heads (and queries) of softmax_t(scale * q_h . k_g(h),t) over ALL keys

kept = the `keep` highest of the span, dropped = the rest, both in ascending order. Source: FastV
(arXiv 2403.06764) and PyramidDrop (arXiv 2410.17247), in the forms of TimeViper (arXiv 2511.16595:
un-normalised hidden states, no rope) and VideoChat-Flash (arXiv 2501.00574: norm, then rope).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tvkernels.attention_topk.reference import (
    NORM_EPS,
    TopKResult,
    attention_topk_hidden_ref,
    attention_topk_ref,
    dropped_indices_ref,
    uniform_topk_ref,
)
from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    Offsets,
    expect_device,
    expect_dtype,
    expect_int,
    expect_ndim,
    expect_number,
    expect_offsets,
    expect_same_device,
    expect_shape,
    fail,
    is_int,
    on_host,
)
from tvkernels.core.library import kernel_op

__all__ = [
    "TopKResult",
    "attention_topk",
    "attention_topk_hidden",
    "dropped_indices",
    "uniform_topk",
]


def attention_topk(
    q: torch.Tensor,
    k: torch.Tensor,
    keep: int | Sequence[int],
    span: Sequence[Any],
    *,
    scale: float | None = None,
    cu_seqlens: Offsets | None = None,
) -> TopKResult:
    """Keep the `keep` tokens of a span that the query rows attend to most, and name the rest.

    scores[t] = mean over heads and queries of softmax(scale * q k^T)[start + t]

    Args:
        q: (batch, nheads, headdim) or (batch, n_queries, nheads, headdim).
        k: (batch, seqlen, nkvheads, headdim), the dtype of q; key head h serves query heads
            h * r to h * r + r - 1 with r = nheads / nkvheads.
        keep: tokens to keep, 0 to length.
        span: (start, length), the tokens to choose from; the softmax sees all keys.
        scale: factor on q k^T; headdim ** -0.5 by default.
        cu_seqlens: (n_seqs + 1,) int32 or int64, or the same as a sequence of ints: sequence i is
            k[0, cu_seqlens[i]:cu_seqlens[i + 1]]. Then batch is 1 for k, q is (n_seqs, nheads,
            headdim) or (n_seqs, n_queries, nheads, headdim), span is one (start, length) per
            sequence, start counted from the sequence's first token, and keep is one count per
            sequence or one for all.

    Returns:
        TopKResult(kept (batch, keep) int64, dropped (batch, length - keep) int64, scores (batch,
        length) float32); indices are relative to start and ascend. With cu_seqlens: kept (sum of
        keep,), dropped and scores likewise one-dimensional, the sequences end to end, each part's
        indices relative to its own start, so torch.split by the counts takes them apart.

    Raises:
        ValueError: a shape, dtype, count or span is not as above.
        BackendUnavailable: the backend due for q is not there.

    Numerics: equal keys get equal scores, bit for bit, wherever they stand, and ties go to the
    lower index; a NaN counts as the highest score. The reference multiplies and takes the softmax
    in float64, and rounds logits and scores to float32; on a device without float64 (MPS) it does
    so in float32, with a warning, and equal keys may rank in any order. On Triton all sums are
    float32, each key's products in the same order, heads averaged in their order; the top-k is
    exact, by radix. For float64 inputs scores are float64. No gradient, deterministic. Memory is
    linear in seqlen: on Triton one float32 logit per query row and key. Nothing is read back from
    the device, except, by the reference, a cu_seqlens tensor that lies there: pass it on the CPU,
    or as ints. On Triton packed sequences run one after the other; with cu_seqlens on the device a
    span that reaches beyond its sequence is not noticed.
    """
    op = "attention_topk"
    _check_query(op, q, "k", k, keep, span, cu_seqlens, scale)
    expect_shape(op, "k", k, "(batch, seqlen, nkvheads, headdim)", (None, None, None, q.shape[-1]))
    _check_heads(op, q, "k", k.shape[2])
    if backend_for(q, "attention_topk") == "reference":
        return attention_topk_ref(q, k, keep, span, scale=scale, cu_seqlens=cu_seqlens)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.no_grad():
        if cu_seqlens is None:
            return TopKResult(*_by_keys(q, k, keep, list(span), factor, None))
        parts = [
            _by_keys(q[i : i + 1], k[:, rows], count, list(span[i]), factor, cu)
            for i, (rows, count, cu) in enumerate(_sequences(cu_seqlens, keep, q))
        ]
        return _end_to_end(parts)


def attention_topk_hidden(
    q: torch.Tensor,
    hidden: torch.Tensor,
    k_weight: torch.Tensor,
    keep: int | Sequence[int],
    span: Sequence[Any],
    *,
    scale: float | None = None,
    norm_weight: torch.Tensor | tuple[torch.Tensor, float] | None = None,
    k_bias: torch.Tensor | None = None,
    rope: tuple[torch.Tensor, torch.Tensor] | None = None,
    cu_seqlens: Offsets | None = None,
    tail: torch.Tensor | None = None,
) -> TopKResult:
    """`attention_topk` from hidden states, with no key stored.

    k = rope(k_weight rms_norm(hidden) + k_bias)

    scores as in attention_topk; without rope q_h . (W_h x_t) = (W_h^T q_h) . x_t, so the key
    projection is folded into the query and each hidden state is read once.

    Args:
        q: (batch, nheads, headdim) or (batch, n_queries, nheads, headdim), projected and, with
            rope, already rotated.
        hidden: (batch, seqlen, d_model).
        k_weight: (nkvheads * headdim, d_model).
        keep, span, scale, cu_seqlens: as in attention_topk, hidden in the place of k.
        norm_weight: (d_model,) of an RMSNorm on hidden with eps 1e-6, or the pair (weight, eps).
            None: hidden is taken as it is.
        k_bias: (nkvheads * headdim,). Without rope it adds the same number to all logits of a head,
            which the softmax ignores.
        rope: (cos, sin), each (seqlen + t, headdim), rows in the order of the tokens: k * cos +
            rotate_half(k) * sin, rotate_half(k) = (-second half, first half). None: no rotation.
        tail: (batch, t, d_model), tokens behind hidden's. The softmax sees them, the span does not
            reach them: as hidden with tail behind it, bit for bit, without a copy of hidden. Not
            with cu_seqlens.

    Returns:
        TopKResult, as attention_topk.

    Raises:
        ValueError: a shape, dtype, count or span is not as above.
        BackendUnavailable: the backend due for q is not there.

    Numerics: as attention_topk; keys are not rounded to the dtype of hidden on the way, and on
    Triton nothing of their size is stored. There 16 bit hidden states meet query rows with k_weight
    folded in, or k_weight times norm_weight, each as two 16 bit numbers: a value and what its
    rounding lost. Float16 has to be able to hold them.
    """
    op = "attention_topk_hidden"
    _check_query(op, q, "hidden", hidden, keep, span, cu_seqlens, scale)
    _check_tail(op, hidden, tail, cu_seqlens)
    total = hidden.shape[1] + (0 if tail is None else tail.shape[1])
    _check_projection(op, q, hidden.shape[2], total, k_weight, norm_weight, k_bias, rope)
    if backend_for(q, "attention_topk") == "reference":
        return attention_topk_hidden_ref(
            q, hidden, k_weight, keep, span,
            scale=scale, norm_weight=norm_weight, k_bias=k_bias, rope=rope, cu_seqlens=cu_seqlens,
            tail=tail,
        )  # fmt: skip
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    weight, eps = norm_weight if isinstance(norm_weight, tuple) else (norm_weight, NORM_EPS)
    cos, sin = rope or (None, None)
    with torch.no_grad():
        if cu_seqlens is None:
            return TopKResult(
                *_by_hidden(
                    q, hidden, k_weight, k_bias, weight, eps, cos, sin,
                    tail, keep, list(span), factor, None,
                )
            )  # fmt: skip
        parts = [
            _by_hidden(
                q[i : i + 1], hidden[:, rows], k_weight, k_bias, weight, eps,
                None if cos is None else cos[rows], None if sin is None else sin[rows],
                None, count, list(span[i]), factor, cu,
            )
            for i, (rows, count, cu) in enumerate(_sequences(cu_seqlens, keep, q))
        ]  # fmt: skip
        return _end_to_end(parts)


def uniform_topk(length: int, keep: int, device: torch.device | str | None) -> torch.Tensor:
    """Keep `keep` of `length` tokens at even distances, first and last included.

    kept[i] = trunc(i * (length - 1) / (keep - 1)), in exact arithmetic

    Args:
        length: tokens to choose from, at least 0.
        keep: tokens to keep, 0 to length; 1 keeps the first.
        device: where the indices are wanted; None: the default device.

    Returns:
        (keep,) int64, ascending. `dropped_indices` gives the rest.

    Raises:
        ValueError: keep is not between 0 and length, or there is no such device.

    Numerics: integers, equal to truncating the float64 quotient. Upstream TimeViper truncates
    torch.linspace, whose rounded step can end one index off: at few pairs on the CPU (27 of 55 is
    one), on CUDA, in float32, beyond some thousand tokens.
    """
    expect_int("uniform_topk", "length", length, "be an int of at least 0", 0)
    _check_keep("uniform_topk", keep, length)
    expect_device("uniform_topk", "device", device)
    return uniform_topk_ref(length, keep, device)


def dropped_indices(kept: torch.Tensor, length: int) -> torch.Tensor:
    """The indices below `length` that are not in `kept`, ascending.

    dropped = {0, ..., length - 1} minus kept

    Args:
        kept: (..., keep) int64, distinct, each in [0, length).
        length: tokens chosen from.

    Returns:
        (..., length - keep) int64. Its shape is known on the host: nothing is read back.

    Raises:
        ValueError: kept is not int64, holds more than length indices or, on the CPU, one outside
            [0, length) or one twice.
    """
    op = "dropped_indices"
    expect_int(op, "length", length, "be an int of at least 0", 0)
    expect_dtype(op, "kept", kept, (torch.int64,))
    if kept.ndim < 1 or kept.shape[-1] > length:
        fail(op, "kept", f"be (..., keep) with keep at most length {length}", tuple(kept.shape))
    if on_host(kept) and kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= length):
        fail(
            op, "kept", f"hold indices in [0, {length})", f"{int(kept.min())} to {int(kept.max())}"
        )
    if on_host(kept) and kept.shape[-1] > 1:
        ascending = kept.sort(dim=-1).values
        twice = ascending[..., 1:][ascending.diff(dim=-1) == 0]
        if twice.numel():
            fail(op, "kept", "hold distinct indices", f"{int(twice[0])} twice")
    return dropped_indices_ref(kept, length)


def _sequences(
    offsets: Offsets, keep: int | Sequence[int], q: Tensor
) -> Iterator[tuple[slice, int, Tensor | None]]:
    """Rows, count and offsets of each sequence. Offsets on a device stay there: the rows are then
    all rows, and the kernel reads the offsets; else they are None."""
    keeps = keep if isinstance(keep, Sequence) else [keep] * len(q)
    if isinstance(offsets, Tensor) and not on_host(offsets):
        there = offsets.to(q.device)
        yield from ((slice(None), count, there[i : i + 2]) for i, count in enumerate(keeps))
        return
    ends = offsets.tolist() if isinstance(offsets, Tensor) else offsets
    yield from ((slice(*pair), count, None) for pair, count in zip(pairwise(ends), keeps))


def _end_to_end(parts: list[tuple[Tensor, Tensor, Tensor]]) -> TopKResult:
    kept, dropped, scores = (torch.cat([part[0] for part in column]) for column in zip(*parts))
    return TopKResult(kept, dropped, scores)


def _fake_selection(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    keep, (_, length) = rest[-4:-2]
    scores = q.new_empty(q.shape[0], length, dtype=torch.promote_types(q.dtype, torch.float32))
    kept, dropped = (q.new_empty(q.shape[0], n, dtype=torch.int64) for n in (keep, length - keep))
    return kept, dropped, scores


@kernel_op("tvkernels::attention_topk", fake=_fake_selection)
def _by_keys(
    q: Tensor, k: Tensor, keep: int, span: list[int], scale: float, cu: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    from tvkernels.attention_topk.kernel import select_by_keys

    return select_by_keys(q, k, keep, span, scale, cu)


@kernel_op("tvkernels::attention_topk_hidden", fake=_fake_selection)
def _by_hidden(
    q: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor | None,
    eps: float, cos: Tensor | None, sin: Tensor | None, tail: Tensor | None, keep: int,
    span: list[int], scale: float, cu: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from tvkernels.attention_topk.kernel import select_by_hidden

    given = (q, hidden, weight, bias, norm, eps, cos, sin, tail)
    return select_by_hidden(*given, keep, span, scale, cu)


def _check_query(
    op: str,
    q: torch.Tensor,
    name: str,
    keys: torch.Tensor,
    keep: int | Sequence[int],
    span: Sequence[Any],
    cu_seqlens: Offsets | None,
    scale: float | None,
) -> None:
    expect_ndim(op, "q", q, "(batch, [n_queries,] nheads, headdim)", 3, 4)
    expect_dtype(op, "q", q)
    if scale is not None:
        expect_number(op, "scale", scale)
    expect_same_device(op, **{"q": q, name: keys})
    layout = "(batch, seqlen, nkvheads, headdim)" if name == "k" else "(batch, seqlen, d_model)"
    expect_ndim(op, name, keys, layout, layout.count(",") + 1)
    if keys.dtype != q.dtype:
        fail(op, name, f"have the dtype of q ({q.dtype})", keys.dtype)
    batch, seqlen = keys.shape[:2]
    if cu_seqlens is None:
        if q.shape[0] != batch:
            fail(op, "q", f"have the batch {batch} of {name}", f"shape {tuple(q.shape)}")
        _check_span(op, keep, span, seqlen)
        return
    if batch != 1:
        fail(op, name, "have batch 1 (cu_seqlens packs sequences)", f"shape {tuple(keys.shape)}")
    _check_packed(op, q.shape[0], keep, span, cu_seqlens, seqlen)


def _check_tail(op: str, hidden: Tensor, tail: Tensor | None, cu: Offsets | None) -> None:
    if tail is None:
        return
    sizes = (hidden.shape[0], None, hidden.shape[2])
    expect_shape(op, "tail", tail, "(batch, t, d_model)", sizes)
    if tail.dtype != hidden.dtype:
        fail(op, "tail", f"have the dtype of hidden ({hidden.dtype})", tail.dtype)
    expect_same_device(op, hidden=hidden, tail=tail)
    if cu is not None:
        fail(op, "tail", "be None (cu_seqlens is given)", f"shape {tuple(tail.shape)}")


def _check_packed(
    op: str, n_seqs: int, keep: int | Sequence[int], span: Sequence[Any], cu: Offsets, total: int
) -> None:
    if n_seqs < 1:
        fail(op, "q", "have at least one sequence (cu_seqlens is given)", n_seqs)
    expect_offsets(op, "cu_seqlens", cu, total, exact=False)
    if len(cu) != n_seqs + 1:
        fail(op, "cu_seqlens", f"have {n_seqs + 1} entries (q holds {n_seqs} sequences)", len(cu))
    keeps = keep if isinstance(keep, Sequence) else [keep] * n_seqs
    if not isinstance(span, Sequence) or len(span) != n_seqs or len(keeps) != n_seqs:
        got = f"span {span}, keep {keep}"
        fail(op, "span and keep", f"have one entry per sequence ({n_seqs})", got)
    # offsets on a device are not read to be checked; a span too long then fails in slicing
    readable = not isinstance(cu, torch.Tensor) or on_host(cu)
    for i in range(n_seqs):
        length = int(cu[i + 1]) - int(cu[i]) if readable else total
        _check_span(op, keeps[i], span[i], length)


def _check_span(op: str, keep: Any, span: Sequence[Any], seqlen: int) -> None:
    if not isinstance(span, Sequence) or len(span) != 2 or not all(map(is_int, span)):
        fail(op, "span", "be (start, length), two ints", repr(span))
    start, length = span
    if start < 0 or length < 0 or start + length > seqlen:
        fail(op, "span", f"be (start, length) within seqlen {seqlen}", (start, length))
    _check_keep(op, keep, length)


def _check_keep(op: str, keep: Any, length: int) -> None:
    # a text that names length is made only for an error: torch.compile would specialise the length
    if not is_int(keep) or not 0 <= keep <= length:
        fail(op, "keep", f"be an int between 0 and length {length}", repr(keep))


def _check_heads(op: str, q: torch.Tensor, name: str, nkvheads: int) -> None:
    if nkvheads < 1 or q.shape[-2] % nkvheads:
        fail(op, name, f"have key heads that divide nheads {q.shape[-2]} (grouped query)", nkvheads)


def _check_projection(
    op: str,
    q: torch.Tensor,
    d_model: int,
    total: int,
    k_weight: torch.Tensor,
    norm_weight: torch.Tensor | tuple[torch.Tensor, float] | None,
    k_bias: torch.Tensor | None,
    rope: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    headdim = q.shape[-1]
    expect_shape(op, "k_weight", k_weight, "(nkvheads * headdim, d_model)", (None, d_model))
    expect_dtype(op, "k_weight", k_weight)
    expect_same_device(op, q=q, k_weight=k_weight)
    if k_weight.shape[0] % headdim:
        fail(op, "k_weight", f"have rows in multiples of headdim {headdim}", k_weight.shape[0])
    _check_heads(op, q, "k_weight", k_weight.shape[0] // headdim)
    if k_bias is not None:
        expect_shape(op, "k_bias", k_bias, "(nkvheads * headdim,)", (k_weight.shape[0],))
        expect_dtype(op, "k_bias", k_bias)
        expect_same_device(op, q=q, k_bias=k_bias)
    if norm_weight is not None:
        pair = norm_weight if isinstance(norm_weight, tuple) else (norm_weight, NORM_EPS)
        if len(pair) != 2:
            fail(op, "norm_weight", "be a tensor or (weight, eps)", f"{len(pair)} values")
        weight, eps = pair
        expect_number(op, "norm_weight", eps, "have an eps of at least 0", 0)
        expect_shape(op, "norm_weight", weight, "(d_model,)", (d_model,))
        expect_dtype(op, "norm_weight", weight)
        expect_same_device(op, q=q, norm_weight=weight)
    if rope is not None:
        if not isinstance(rope, Sequence) or len(rope) != 2:
            fail(op, "rope", "be (cos, sin), two tensors", f"a {type(rope).__name__}")
        for name, table in zip(("rope cos", "rope sin"), rope):
            expect_shape(op, name, table, "(seqlen, headdim)", (total, headdim))
            expect_dtype(op, name, table)
            expect_same_device(op, **{"q": q, name: table})
        if headdim % 2:
            fail(op, "q", "have an even headdim (rope turns halves)", headdim)
