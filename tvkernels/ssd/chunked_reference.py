"""The Mamba-2 scan of a span of chunks in PyTorch; `segments_reference.py` calls it.

    S_t = exp(l_t) S_{t-1} + delta_t B_t x_t^T,    y_t = S_t^T C_t + D x_t,    out_t = y_t silu(z_t)

With the decays E_ij = exp(l_{j+1} + ... + l_i) of a chunk and S the state that enters it:

    y_i = sum_{j <= i} E_ij (C_i . B_j) delta_j x_j + exp(l_1 + ... + l_i) S^T C_i + D x_i

Source: Dao & Gu 2024 (arXiv 2405.21060), section 6; the backward is the transpose of each step.

The dots between the tokens of a chunk are computed for a span of chunks at once. The state is taken
through the chunks one after the other, so that it stays in cache.

Layouts: a span of c chunks holds its tensors per head as (c, batch, nheads, q, ...), per group as
(c, batch, ngroups, q, ...). The heads of a group share B and C: side by side they are the columns
of one matrix, and a state is (batch * ngroups, d_state, columns), a column for a (head, channel).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CHUNK", "Span", "dense", "spans"]

# a longer chunk costs more for pairs of tokens, a shorter one more for states; both cost the same
# at about 32
CHUNK = 32
# the backward keeps only the first state of each span
CHUNKS_PER_SPAN = 8


def path_matrix(q: int, like: Tensor) -> Tensor:
    """0/1 matrix (q, q * q + q): column (i, j) marks the tokens j < k <= i, the last q mark k <= i.

    Log-decays times this matrix are the exponents of all paths of a chunk, each a plain sum. A
    difference of running sums would lose small decays beside one huge step, and so would its
    gradient.
    """
    k = torch.arange(q, device=like.device)
    upto = k[:, None] <= k
    between = upto[:, :, None] & (k[:, None] > k)[:, None, :]
    return torch.cat([between.flatten(1), upto], dim=1).to(like.dtype)


def decays(log_decay: Tensor, paths: Tensor) -> Tensor:
    """exp of the path sums of log_decay (..., q): (..., q * q + q), an exact zero if tiny.

    Pairs j > i have no path: their sum is 0 and exp is 1, and the mask of C B^T drops them. Tiny
    values are set to 0 because denormal numbers slow down every product.
    """
    total = torch.mm(log_decay.reshape(-1, paths.shape[0]), paths)
    lowest = math.log(_negligible(total.dtype))
    return (
        F.threshold(total, lowest, -math.inf, inplace=True)
        .exp_()
        .unflatten(0, log_decay.shape[:-1])
    )


class _ChunkStep(NamedTuple):
    """What takes the state through a chunk: decay per column, B^T, and the tokens' weighted x."""

    kept: Tensor
    b_t: Tensor
    tokens: Tensor

    def advance(self, state: Tensor) -> Tensor:
        """The state that leaves the chunk, given the one that enters."""
        return (state * self.kept).baddbmm_(self.b_t, self.tokens)


class _StateTerms(NamedTuple):
    """Parts of the cotangents of B, C, sent tokens and kept state that come through the states, and
    C times the states."""

    b: Tensor
    c: Tensor
    sent: Tensor
    kept: Tensor
    read: Tensor


class Span:
    """The inputs of a span of chunks in the header's layouts, and the scan over it."""

    def __init__(
        self,
        paths: Tensor,
        x: Tensor,
        delta: Tensor,
        log_decay: Tensor,
        B: Tensor,
        C: Tensor,
    ) -> None:
        q = paths.shape[0]
        self.paths, self.ngroups = paths, B.shape[2]
        self.x, self.delta = x, delta
        self.B, self.C = (t.to(delta.dtype).contiguous() for t in (B, C))
        every = decays(log_decay, paths)
        self.within = every[..., :-q].unflatten(-1, (q, q))
        self.enter = every[..., -q:]
        self.leave = self.within[..., -1, :]

    def scan(
        self,
        state: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        out: Tensor,
    ) -> Tensor:
        """Writes `out`, returns the last state."""
        y, last = self.outputs(state, D)
        out.copy_(y if z is None else y.mul_(F.silu(z.to(y.dtype))))
        return last

    def scan_backward(
        self,
        state: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dout: Tensor,
        dstate: Tensor,
        grads: list[Any],
        dD: Tensor | None,
    ) -> Tensor:
        """Writes the span's part of `grads`, adds to dD, returns the first state's cotangent."""
        *dinputs, dz = grads
        entering: list[Tensor] = []
        dy = dout.to(self.delta.dtype)
        if z is None:
            self.pass_states(state, entering)
        else:
            y, _ = self.outputs(state, D, entering)
            dy, dgate = _gate_backward(dy, z.to(dy.dtype), y)
            dz.copy_(dgate)
        if dD is not None:
            dD += (dy * self.x).sum((0, 1, 3))
        terms, dstate = self.pass_states_backward(dy, entering, dstate)
        for whole, part in zip(dinputs, self.outputs_backward(dy, terms, D)):
            whole.copy_(part)
        return dstate

    def outputs(
        self, state: Tensor, D: Tensor | None, entering: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """y of every token (c, batch, nheads, q, headdim), and the last state."""
        y = self._mixing(self._scores()) @ self._delta_x()
        read = torch.empty(*self.C.shape[:-1], state.shape[-1], dtype=y.dtype, device=y.device)
        last = self.pass_states(state, entering, read)
        self._groups(y).addcmul_(self._by_head(read), self._groups(self.enter)[..., None])
        return (y if D is None else y.addcmul_(self.x, D[:, None])), last

    def pass_states(
        self, state: Tensor, entering: list[Tensor] | None = None, read: Tensor | None = None
    ) -> Tensor:
        """The last state, given the first.

        Appends the states before the chunks to `entering`, and writes their products with C, one
        matrix per group like `_columns`, to `read`.
        """
        reads = None if read is None else zip(_chunks(self.C), _chunks(read))
        for step in self._chunk_steps():
            if entering is not None:
                entering.append(state)
            if reads is not None:
                C, into = next(reads)
                torch.bmm(C, state, out=into)
            state = step.advance(state)
        return _settled(state)

    def pass_states_backward(
        self, dy: Tensor, entering: list[Tensor], dstate: Tensor
    ) -> tuple[_StateTerms, Tensor]:
        """The cotangent of the first state, from those of y and the last state."""
        chunk_steps = self._chunk_steps()
        reads = zip(_chunks(self.C), _chunks(self._columns(dy, self.enter)), entering)
        found = []
        for step, (C, dread, before) in reversed(list(zip(chunk_steps, reads))):
            dB = step.tokens @ dstate.transpose(1, 2)
            dC = dread @ before.transpose(1, 2)
            dsent = step.b_t.transpose(1, 2) @ dstate
            dkept = (before * dstate).sum(1)
            found.append(_StateTerms(dB, dC, dsent, dkept, C @ before))
            dstate = (dstate * step.kept).baddbmm_(C.transpose(1, 2), dread)
        joined = (torch.stack(t[::-1]).unflatten(1, self.B.shape[1:3]) for t in zip(*found))
        return _StateTerms(*joined), _settled(dstate)

    def outputs_backward(
        self, dy: Tensor, terms: _StateTerms, D: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Cotangents of x, delta, log_decay (per head), B and C (per group)."""
        mixing = self._mixing(self._scores())
        dmixing = dy @ self._delta_x().transpose(-1, -2)
        dwithin = dmixing * mixing
        dscores = self._groups(dmixing.mul_(self.within)).sum(3).tril_()
        dB = (dscores.transpose(-1, -2) @ self.C).add_(terms.b)
        dC = (dscores @ self.B).add_(terms.c)
        ddelta_x = mixing.transpose(-1, -2) @ dy
        dsent = self._by_head(terms.sent).flatten(2, 3)
        dleave = (dsent * self.x).sum(-1) * self.leave
        ddelta = (ddelta_x * self.x).sum(-1) + dleave
        dx = ddelta_x.addcmul_(dsent, self.leave[..., None]).mul_(self.delta[..., None])
        if D is not None:
            dx.addcmul_(dy, D[:, None])
        # paths between tokens of the chunk, out of it (the last row), into it, and through it
        dwithin[..., -1, :] += self.delta * dleave
        read = (self._groups(dy) * self._by_head(terms.read)).sum(-1).flatten(2, 3)
        denter = read * self.enter
        dkept = terms.kept.unflatten(-1, (-1, self.x.shape[-1])).sum(-1).flatten(2)
        denter[..., -1] += dkept * self.enter[..., -1]
        dlog_decay = torch.cat([dwithin.flatten(-2), denter], dim=-1) @ self.paths.T
        return dx, ddelta, dlog_decay, dB, dC

    def _chunk_steps(self) -> list[_ChunkStep]:
        """A step for each chunk."""
        kept = self.enter[..., -1, None].expand(*self.enter.shape[:-1], self.x.shape[-1])
        kept = self._groups(kept).flatten(3)[:, :, :, None]
        sent = self._columns(self.x, self.delta * self.leave)
        return [_ChunkStep(*t) for t in zip(_chunks(kept), _chunks(self.B.mT), _chunks(sent))]

    def _delta_x(self) -> Tensor:
        """delta x, contiguous per head."""
        out = torch.empty(self.x.shape, dtype=self.delta.dtype, device=self.x.device)
        return torch.mul(self.x, self.delta[..., None], out=out)

    def _scores(self) -> Tensor:
        """C_i . B_j for j <= i, else 0, per group."""
        return (self.C @ self.B.transpose(-1, -2)).tril_()

    def _mixing(self, scores: Tensor) -> Tensor:
        """The matrix from delta x to y within a chunk, per head."""
        return (self._groups(self.within) * scores[:, :, :, None]).flatten(2, 3)

    def _groups(self, per_head: Tensor) -> Tensor:
        """(c, batch, nheads, ...) as (c, batch, ngroups, heads of the group, ...)."""
        return per_head.unflatten(2, (self.ngroups, -1))

    def _columns(self, per_head: Tensor, scale: Tensor) -> Tensor:
        """per_head * scale as one matrix per group (c, batch, ngroups, q, columns)."""
        rows = per_head.transpose(2, 3) * scale.transpose(2, 3)[..., None]
        return rows.unflatten(3, (self.ngroups, -1)).flatten(4).transpose(2, 3)

    def _by_head(self, columns: Tensor) -> Tensor:
        """The inverse of `_columns`: (c, batch, ngroups, heads of the group, q, headdim)."""
        return columns.unflatten(4, (-1, self.x.shape[-1])).transpose(3, 4)


def spans(like: Tensor, *tensors: Tensor | None) -> list[tuple[Tensor, list[Any]]]:
    """(path matrix, views of the tensors in the header's layouts) of each span.

    The tensors are None or (batch, seqlen, nheads or ngroups, ...); `like` (batch, seqlen, ...) has
    the dtype of the computation. Tokens beyond the last whole chunk are one short chunk.
    """
    whole, rest = divmod(like.shape[1], CHUNK)
    found: list[tuple[Tensor, list[Any]]] = []
    for first, chunks, q in ((0, whole, CHUNK), (whole, 1, rest)):
        if chunks * q == 0:
            continue
        paths = path_matrix(q, like)
        tokens = slice(first * CHUNK, first * CHUNK + chunks * q)
        views = [
            None
            if t is None
            else t[:, tokens].unflatten(1, (chunks, q)).transpose(0, 1).transpose(2, 3)
            for t in tensors
        ]
        for c in range(0, chunks, CHUNKS_PER_SPAN):
            cut = [None if v is None else v[c : c + CHUNKS_PER_SPAN] for v in views]
            found.append((paths, cut))
    return found


def dense(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor like x."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    """(c, batch, ngroups, ...) as c tensors (batch * ngroups, ...)."""
    return x.flatten(1, 2).unbind(0)


def _gate_backward(dout: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cotangents of y and z for out = y silu(z)."""
    s = torch.sigmoid(z)
    return dout * z * s, dout * y * s * (1 + z * (1 - s))


def _settled(state: Tensor) -> Tensor:
    """Tiny entries of a state set to 0: without input it would decay into denormal numbers."""
    return F.hardshrink(state, _negligible(state.dtype))


def _negligible(dtype: torch.dtype) -> float:
    """e^7 times the smallest normal number: a product with numbers near 1 is still normal."""
    return math.exp(7) * torch.finfo(dtype).tiny
