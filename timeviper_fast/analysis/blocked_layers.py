"""Attention, Mamba-2 and TransV whose blocked rows do not see vision.

Each computes what the layer computes, then the blocked rows once more without vision, and chooses
rows after. So rows that are not blocked are those of the layer itself, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper_fast.analysis.labels import INSTRUCTION, RESPONSE, Labels, Mark, Piece
from timeviper_fast.errors import not_built
from timeviper_fast.layout import Segment
from timeviper_fast.model.attention import Attention
from timeviper_fast.model.cache import AttentionState
from timeviper_fast.model.mamba_state import MambaState
from timeviper_fast.model.nemotron_h import Mamba2
from timeviper_fast.model.stack import Packing
from timeviper_fast.model.transv import StageRecord, TransV

__all__ = ["GRADES", "BlockedAttention", "BlockedMamba", "BlockedTransV", "attend_without"]

GRADES = ("edge", "edge+conv", "absent")
# rows whose mask is held at a time
_BLOCK = 256


class BlockedAttention(Attention):
    """Attention in which blocked rows see no vision columns; the other columns renormalise."""

    layer: int
    labels: Labels

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, state: AttentionState | None
    ) -> Tensor:
        out = super()._attend(q, k, v, packing, state)
        here = self.labels.piece(q.shape[1])
        mark, last = Mark([here.vision[None]]), torch.full((1,), q.shape[1], device=q.device)
        if state is not None:
            mark, last = self.labels.mark(self.layer), state.lengths.long() + state.start
            if not self.labels.decoding:
                _more(mark, here, state)
        if not here.any_blocked or not bool(mark.column.any()):
            return out
        if state is not None:
            k, v = _written(state, last)
        at = _blocked_rows(here, q.device)
        places = last[:, None] - q.shape[1] + at
        seen = attend_without(q.index_select(1, at), k, v, places, mark.column_on(q.device))
        return out.index_copy(1, at, seen)


def _more(mark: Mark, here: Piece, state: AttentionState) -> None:
    """Add the columns of this pass."""
    mark.columns.append(here.vision[None])
    if mark.column.shape[1] != state.start + state.longest:
        not_built("blocked", "video", "keep all that it has read", "one that forgets (bounded)")


def _written(state: AttentionState, last: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of all columns, 0 behind each row's `last`: a weight of 0 on memory that was
    never written would be NaN where a NaN lies there."""
    k, v = state.everything
    if state.even and not state.fixed:
        return k, v
    behind = torch.arange(k.shape[1], device=k.device) >= last[:, None]
    return tuple(x.masked_fill(behind[:, :, None, None], 0) for x in (k, v))  # type: ignore[return-value]


def _blocked_rows(here: Piece, device: torch.device) -> Tensor:
    """(n,) int64, the blocked rows; a step of an answer copies nothing from the host."""
    if here.all_blocked:
        return torch.arange(len(here.blocked), device=device)
    return here.blocked.nonzero()[:, 0].to(device)


def attend_without(q: Tensor, k: Tensor, v: Tensor, places: Tensor, columns: Tensor) -> Tensor:
    """Causal attention of some rows over all columns but those in `columns`.

    Args:
        q: (batch, n, nheads, headdim).
        k, v: (batch, m, nkvheads, headdim).
        places: (1 or batch, n) int64, the column of each row itself, which must not be left out.
        columns: (1 or batch, up to m) bool, the columns that are left out.

    Returns:
        (batch, n, nheads, headdim), softmax over the columns that are left.
    """
    keys, outs = torch.arange(k.shape[1], device=k.device), []
    allowed = ~F.pad(columns, (0, k.shape[1] - columns.shape[1]))[:, None]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    for start in range(0, q.shape[2], _BLOCK):
        rows = slice(start, start + _BLOCK)
        mask = ((keys <= places[:, rows, None]) & allowed)[:, None]
        outs.append(
            F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=mask, enable_gqa=True)
        )
    return torch.cat(outs, dim=2).transpose(1, 2)


class BlockedMamba(Mamba2):
    """Mamba-2 with a second scan, in which vision is blocked, for the blocked rows.

    With a cache the second scan has a state of its own from the first vision token on.
    """

    layer: int
    labels: Labels
    grade: str

    def _scan(
        self, xBC: Tensor, dt: Tensor, seq_idx: Tensor | None, state: MambaState | None
    ) -> Tensor:
        here = self.labels.piece(xBC.shape[1])
        twin = None if state is None else self._twin(here, state)
        y = super()._scan(xBC, dt, seq_idx, state)
        needed = here.any_vision and here.any_blocked if state is None else twin is not None
        if not needed:
            return y
        second = self._second(xBC, dt, here, twin)
        at = _blocked_rows(here, y.device)
        return y.index_copy(1, at, second.index_select(1, at))

    def _step(self, zxBCdt: Tensor, state: MambaState) -> Tensor:
        here = self.labels.piece(1)
        twin = self._twin(here, state)
        y = super()._step(zxBCdt, state)
        if twin is None:
            return y
        if here.any_vision:
            _, xBC, dt = zxBCdt[:, None].split(self.widths, dim=-1)
            self._second(xBC, dt, here, twin)
            return y
        second = super()._step(zxBCdt, twin)
        return second if here.all_blocked else y

    def _twin(self, here: Piece, state: MambaState) -> MambaState | None:
        """The state of the second scan; None while it is the layer's own, or nothing reads it."""
        if self.labels.decoding and not self.labels.blocks(RESPONSE):
            return None
        mark = self.labels.mark(self.layer)
        if here.any_vision and mark.twin is None:
            mark.twin = state.fork(len(state.ssm))
        return mark.twin

    def _second(self, xBC: Tensor, dt: Tensor, here: Piece, twin: MambaState | None) -> Tensor:
        """(batch, seqlen, d_inner) of a scan in which vision is blocked; the rows of vision tokens
        have no meaning."""
        if self.grade == "absent":
            return self._cut(xBC, dt, here, twin)
        vision = here.vision.to(xBC.device)[None, :, None]
        if self.grade == "edge+conv":
            xBC = xBC.masked_fill(vision, 0)
        x, B, C = self._convolve(xBC, None, twin)
        return self._recur(x.masked_fill(vision[..., None], 0), dt, B, C, None, twin)

    def _cut(self, xBC: Tensor, dt: Tensor, here: Piece, twin: MambaState | None) -> Tensor:
        """Convolution and scan of the sequence with its vision cut out."""
        y = xBC.new_zeros(*xBC.shape[:2], self.config.d_inner)
        left = (~here.vision).nonzero()[:, 0].to(xBC.device)
        if not len(left):
            return y
        xBC, dt = (t.index_select(1, left) for t in (xBC, dt))
        return y.index_copy(1, left, super()._scan(xBC, dt, None, twin))


class BlockedTransV(TransV):
    """A stage that tells the labels what it keeps, and whose transfer leaves blocked rows alone."""

    labels: Labels
    closed: bool

    def forward(
        self, hidden: Tensor, segments: tuple[Segment, ...], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, tuple[Segment, ...], list[StageRecord]]:
        shorter, after, records = super().forward(hidden, segments, *args, **kwargs)
        self.labels.place(after[0])
        return shorter, after, records

    def read(self, text: Tensor, key: Tensor, value: Tensor) -> Tensor:
        told = super().read(text, key, value)
        if not self.closed:
            return told
        answer = text.shape[1] - self.labels.answers
        blocks = self.labels.blocks
        parts = [
            (text if blocks(INSTRUCTION) else told)[:, :answer],
            (text if blocks(RESPONSE) else told)[:, answer:],
        ]
        return torch.cat(parts, dim=1)
