"""The Mamba-2 scan in PyTorch, one sequence after the other; `reference.py` calls it.

Sequences that lie packed in one row are segments, which never share a chunk. Layouts as in
chunked_reference.py, which computes the spans of a segment.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tvkernels.core.checks import on_host
from tvkernels.core.plain import first_order, no_autocast, one_operator
from tvkernels.ssd.chunked_reference import Span, dense, spans

__all__ = ["ChunkScan"]


class ChunkScan(torch.autograd.Function):
    """(out, last state, states after each sequence of `ends`) of a scan.

    x, z (batch, seqlen, nheads, headdim), B, C (batch, seqlen, ngroups, d_state), any dtype; delta,
    log_decay (batch, seqlen, nheads), D (nheads, headdim) and state (header's layout) in the dtype
    of the computation. sequence (batch, seqlen): the state is 0 again where it changes. ends
    (num_seqs + 1,), only with a batch of 1: offsets of sequences, whose states are 0 where empty.

    Tokens of two sequences never share a chunk: a product with 0 would let NaN and infinity pass
    from one to the other. For that `sequence` and `ends` are read on the host.

    The backward saves only the inputs: it computes the states again and holds one per span.
    Forward and backward compute in the dtype of their arguments, also under autocast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        log_decay: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        state: Tensor,
        sequence: Tensor | None,
        ends: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (x, delta, log_decay, B, C, D, z, state, sequence, ends)
        ctx.save_for_backward(*inputs)
        return scan_forward(*inputs)

    @staticmethod
    @first_order("mamba_chunk_scan_combined")
    def backward(
        ctx: Any, dout: Tensor, dstate: Tensor, dafter: Tensor
    ) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grads = scan_backward(dout, dstate, dafter, *inputs)
        own = [None if x is None else grad for x, grad in zip(inputs, grads)]
        return (*own, None, None)


def _fake_forward(
    x: Tensor, delta: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _, _, state, _, ends = rest
    num_seqs = 0 if ends is None else ends.shape[0] - 1
    return dense(x), dense(state), state.new_empty(num_seqs, *state.shape)


@one_operator("tvkernels::chunk_scan_reference_fwd", fake=_fake_forward)
def scan_forward(
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    state: Tensor,
    sequence: Tensor | None,
    ends: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ChunkScan`."""
    out, last = dense(x), dense(state)
    after = state.new_zeros(0 if ends is None else ends.shape[0] - 1, *state.shape)
    with no_autocast(x):
        for row, segments in _rows(x, sequence, ends):
            cut = _cutter(row, out, z, x, delta, log_decay, B, C)
            now = _of_row(state, row, x)
            for segment in segments:
                now = torch.zeros_like(now) if segment.is_fresh else now
                now = _scan_segment(cut(segment), D, now)
                if segment.ending is not None:
                    after[segment.ending] = now
            _of_row(last, row, x).copy_(now)
    return out, last, after


def _fake_backward(dout: Tensor, dstate: Tensor, dafter: Tensor, *inputs: Any) -> Any:
    return tuple(dout.new_empty(0) if x is None else dense(x) for x in inputs[:8])


@one_operator("tvkernels::chunk_scan_reference_bwd", fake=_fake_backward)
def scan_backward(
    dout: Tensor,
    dstate: Tensor,
    dafter: Tensor,
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    state: Tensor,
    sequence: Tensor | None,
    ends: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cotangents of x to state, without elements for an input that is None."""
    inputs = (x, delta, log_decay, B, C)
    dx, ddelta, dlog_decay, dB, dC = grads = [dense(t) for t in inputs]
    dD = None if D is None else dense(D).zero_()
    dz = None if z is None else dense(z)
    dfirst = dense(state)
    with no_autocast(x):
        for row, segments in _rows(x, sequence, ends):
            cut = _cutter(row, dout, z, *inputs, *grads, dz)
            firsts = [_of_row(state, row, x)]
            for segment, following in pairwise(segments):
                last = firsts[-1]
                if following.is_fresh:
                    last = torch.zeros_like(last)
                else:
                    for paths, (_, _, *rest) in spans(delta, *cut(segment)):
                        last = Span(paths, *rest[:5]).pass_states(last)
                firsts.append(last)
            dnow = _of_row(dstate, row, x)
            for segment in reversed(segments):
                if segment.ending is not None:
                    dnow = dnow + dafter[segment.ending]
                dnow = _segment_backward(cut(segment), firsts.pop(), D, dnow, dD)
                dnow = torch.zeros_like(dnow) if segment.is_fresh else dnow
            _of_row(dfirst, row, x).copy_(dnow)
    dD, dz = (dout.new_empty(0) if grad is None else grad for grad in (dD, dz))
    return dx, ddelta, dlog_decay, dB, dC, dD, dz, dfirst


class _Segment(NamedTuple):
    """Tokens of one batch row, or of all rows, that only one sequence has."""

    tokens: slice
    is_fresh: bool
    """whether the state is 0 at its start"""
    ending: int | None
    """the sequence of `ends` that ends with it"""


def _rows(
    x: Tensor, sequence: Tensor | None, ends: Tensor | None
) -> list[tuple[slice, list[_Segment]]]:
    """The segments of each batch row; of all rows at once where none has several sequences."""
    batch, seqlen = x.shape[:2]
    if not seqlen:
        return [(slice(0, batch), [])]
    if sequence is None:
        return [(slice(0, batch), [_Segment(slice(0, seqlen), False, None)])]
    offsets = [] if ends is None else ends.tolist()
    last_of = {b: number for number, (a, b) in enumerate(pairwise(offsets)) if a < b}
    found = []
    for row, numbers in enumerate(sequence.tolist()):
        resets = {t for t in range(1, seqlen) if numbers[t] != numbers[t - 1]}
        cuts = sorted({0, seqlen} | resets | last_of.keys())
        segments = [_Segment(slice(a, b), a in resets, last_of.get(b)) for a, b in pairwise(cuts)]
        found.append((slice(row, row + 1), segments))
    return found


def _cutter(row: slice, *tensors: Tensor | None) -> Callable[[_Segment], list[Any]]:
    """A function that cuts a segment of one batch row, or of all, out of the tensors."""
    return lambda s: [None if t is None else t[row, s.tokens] for t in tensors]


def _of_row(state: Tensor, row: slice, x: Tensor) -> Tensor:
    """The rows (batch * ngroups) of `state` that belong to these rows of the batch."""
    groups = state.shape[0] // max(1, x.shape[0])
    return state[row.start * groups : row.stop * groups]


def _scan_segment(cut: list[Any], D: Tensor | None, state: Tensor) -> Tensor:
    """Writes the segment's out, the first of `cut`; returns the state behind it.

    In a chunk a product with 0 carries NaN and infinity to earlier tokens. They stay in the state,
    so on the host that of the last token and C say whether there are any. Elsewhere asking would be
    a host sync.
    """
    if not on_host(state):
        return _scan_masked(cut, D, state)
    last = _scan_spans(cut, D, state)
    if _is_finite(last) and _is_finite(cut[-1]):
        return last
    sound = torch.stack([t.isfinite().flatten(2).all(-1) for t in cut[2:]]).all(0).all(0)
    first = int(sound.cumprod(0).sum()) if _is_finite(state) else 0
    if first:
        state = _scan_spans(_part(cut, slice(0, first)), D, state)
    return _scan_tokens(_part(cut, slice(first, None)), D, state)


def _is_finite(x: Tensor) -> bool:
    # unlike isfinite, this takes no memory
    return not x.numel() or all(bool(end.isfinite()) for end in x.aminmax())


def _part(cut: list[Any], tokens: slice) -> list[Any]:
    return [None if t is None else t[:, tokens] for t in cut]


def _scan_tokens(cut: list[Any], D: Tensor | None, state: Tensor) -> Tensor:
    """As `_scan_segment`, token by token: NaN and infinity are where the recurrence has them."""
    out, z, x, delta, log_decay, B, C = cut
    batch, seqlen, nheads, headdim = x.shape
    groups = (batch, B.shape[2], -1)
    kept = log_decay.exp()[..., None].expand(x.shape)
    sent = delta[..., None] * x
    for t in range(seqlen):
        # (batch * ngroups, 1, columns) and (batch * ngroups, d_state, 1)
        decay, token = (s[:, t].reshape(groups).flatten(0, 1)[:, None] for s in (kept, sent))
        b, c = (s[:, t].to(state.dtype).flatten(0, 1)[..., None] for s in (B, C))
        state = state * decay + b * token
        y = (state * c).sum(1).view(batch, nheads, headdim)
        if D is not None:
            y = y + x[:, t] * D
        out[:, t] = y if z is None else y * F.silu(z[:, t].to(y.dtype))
    return state


def _scan_masked(cut: list[Any], D: Tensor | None, state: Tensor) -> Tensor:
    """As `_scan_segment`, with 0 in the places of NaN and infinity: what they reach is NaN."""
    out, z, *inputs, C = cut
    x, delta, log_decay, B = inputs
    clean = [t.where(t.isfinite(), 0.0) for t in (*inputs, state)]
    last = _scan_spans([out, z, *clean[:4], C], D, clean[4])
    headdim, heads_per_group = x.shape[3], x.shape[2] // B.shape[2]
    spoilt_B = ~B.isfinite()
    spoilt = ~(delta.isfinite() & log_decay.isfinite())[..., None] | ~x.isfinite()
    columns = spoilt.any(1).flatten(1).unflatten(1, (B.shape[2], -1)).flatten(0, 1)
    entries = columns[:, None] | spoilt_B.any(1).flatten(0, 1)[:, :, None] | ~state.isfinite()
    entered = (~state.isfinite()).any(1).view(x.shape[0], 1, -1, headdim)
    by_head = spoilt_B.any(-1).repeat_interleave(heads_per_group, 2)[..., None]
    reached = (spoilt | by_head).cumsum(1, dtype=torch.int32) > 0
    out.masked_fill_(reached | entered, float("nan"))
    return last.masked_fill(entries, float("nan"))


def _scan_spans(cut: list[Any], D: Tensor | None, state: Tensor) -> Tensor:
    last = state.clone()
    for paths, (out, z, *inputs) in spans(cut[3], *cut):
        last = Span(paths, *inputs).scan(last, D, z, out)
    return last


def _segment_backward(
    cut: list[Any], state: Tensor, D: Tensor | None, dstate: Tensor, dD: Tensor | None
) -> Tensor:
    """Writes the gradients, the last six of `cut`; returns that of the state before the segment."""
    parts = spans(cut[3], *cut)
    firsts = [state]
    for paths, (_, _, *rest) in parts[:-1]:
        firsts.append(Span(paths, *rest[:5]).pass_states(firsts[-1]))
    for paths, (dout, z, *rest) in reversed(parts):
        span = Span(paths, *rest[:5])
        dstate = span.scan_backward(firsts.pop(), D, z, dout, dstate, rest[5:], dD)
    return dstate
