"""Rows of the residual stream on their way through a prefix: blocks of one size, and a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.cache import enlarged

__all__ = ["Grid", "RowStore", "Rows"]


@dataclass(frozen=True)
class Rows:
    """Rows of the residual stream, in order.

    Attributes:
        hidden: (batch, n, d_model).
        source: (n,) int64 on the CPU, the number of each row's vision token; -1 for text, and
            -2 - n for text that labels the frame whose first vision token has number n.
    """

    hidden: Tensor
    source: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.hidden[:, part], self.source[part])

    @property
    def vision(self) -> int:
        """How many are vision tokens."""
        return int((self.source >= 0).sum())

    @property
    def segment(self) -> Segment:
        """Where their vision tokens lie."""
        at = (self.source >= 0).nonzero()[:, 0]
        if not len(at):
            return Segment(len(self))
        span = VisualSpan(int(at[0]), int(at[-1] - at[0]) + 1)
        inside = span.length - len(at)
        index = (at - at[0])[None] if inside else None
        return Segment(len(self), span, text_inside=inside, index=index)

    def where(self, mask: Tensor) -> Rows:
        """Copies of those for which `mask` (n,) bool on the CPU holds."""
        at = mask.nonzero()[:, 0]
        if self.hidden.device.type == "cuda":
            # from pageable memory the copy would be a host sync
            at = at.pin_memory().to(self.hidden.device, non_blocking=True)
        return Rows(self.hidden.index_select(1, at.to(self.hidden.device)), self.source[mask])

    def copy(self) -> Rows:
        """Copies: a view would keep the whole of a caller's buffer alive, and change with it."""
        return Rows(self.hidden.clone(), self.source)

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        if len(parts) == 1:
            return parts[0]
        hidden = torch.cat([part.hidden for part in parts], dim=1)
        return Rows(hidden, torch.cat([part.source for part in parts]))


class Grid:
    """Collects rows and gives them out in blocks of exactly `size`; None gives all at the end."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.pending: list[Rows] = []

    def push(self, rows: Rows) -> Iterator[Rows]:
        """The blocks that are full; a caller may overwrite its rows afterwards."""
        while self.size is not None and self.count + len(rows) >= self.size:
            cut = self.size - self.count
            parts = [*self.pending, rows[:cut]]
            self.pending, rows = [], rows[cut:]
            yield Rows.join(parts)
        if len(rows):
            self.pending.append(rows.copy())

    def rest(self) -> Iterator[Rows]:
        """What is left, as one block."""
        if self.pending:
            parts, self.pending = self.pending, []
            yield Rows.join(parts)

    @property
    def count(self) -> int:
        return sum(len(part) for part in self.pending)

    def fork(self) -> Grid:
        fork = Grid(self.size)
        fork.pending = [*self.pending]
        return fork


class RowStore:
    """Rows that reached the asking stage: those of the prefix this was forked from, then its own in
    one buffer that may grow."""

    def __init__(self, capacity: int, like: Tensor, batch: int, growing: bool) -> None:
        self._rows = like.new_empty(batch, capacity, like.shape[1])
        self._growing = growing
        self._source: list[Tensor] = []
        self._length = 0
        self._base: tuple[Rows, ...] = ()

    def append(self, rows: Rows) -> None:
        stop = self._length + len(rows)
        if self._growing:
            self._rows = enlarged(self._rows, self._length, stop)
        self._rows[:, self._length : stop] = rows.hidden
        self._source.append(rows.source)
        self._length = stop

    @property
    def nbytes(self) -> int:
        """Bytes of its own buffer."""
        return self._rows.nbytes

    @property
    def parts(self) -> tuple[Rows, ...]:
        """Everything as views, in order; one part unless this is a fork."""
        source = torch.cat([*self._source, torch.empty(0, dtype=torch.int64)])
        return (*self._base, Rows(self._rows[:, : self._length], source))

    def forget(self, gone: Tensor) -> None:
        """Forget the rows of these numbers, (n,) int64."""
        [rows] = self.parts
        left = rows.where(~torch.isin(rows.source, gone))
        self._rows = self._rows.new_empty(self._rows.shape)
        self._source, self._length = [], 0
        self.append(left)

    def clear(self) -> None:
        """Hold nothing any more."""
        self._source, self._length, self._base = [], 0, ()

    def fork(self) -> RowStore:
        """One that shares what is written; its next rows go elsewhere."""
        fork = RowStore(0, self._rows[0], len(self._rows), growing=True)
        fork._base = self.parts
        return fork
