"""Which rows of a pass are vision and which ones are blocked, and what a cache keeps of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timeviper_fast.errors import fail, not_built
from timeviper_fast.layout import Segment
from timeviper_fast.model.cache import AttentionState, HybridCache
from timeviper_fast.model.mamba_state import MambaState

__all__ = ["INSTRUCTION", "RESPONSE", "Labels", "Mark", "MarkedCache", "Piece", "marks_of"]

INSTRUCTION, RESPONSE = "instruction", "response"


class Piece(NamedTuple):
    """The rows that pass a layer now.

    Attributes:
        vision: (n,) bool on the CPU, the vision tokens.
        blocked: (n,) bool on the CPU, the rows that must not see vision.
        any_vision, any_blocked: whether there is one.
        all_blocked: whether there are blocked rows alone.
    """

    vision: Tensor
    blocked: Tensor
    any_vision: bool
    any_blocked: bool
    all_blocked: bool


@dataclass
class Mark:
    """What a cache keeps of one layer beside its state.

    Attributes:
        columns: for an attention layer, (1 or batch, n) bool on the CPU for each pass, in order:
            which of its keys are vision.
        twin: for a Mamba-2 layer, the state of the blocked scan; None before the first vision
            token, while the layer's own state is the same.
    """

    columns: list[Tensor] = field(default_factory=list)
    twin: MambaState | None = None
    _placed: Tensor | None = None

    def column_on(self, device: torch.device) -> Tensor:
        """`column` on a device. It is copied once, so that a CUDA graph of a step copies nothing
        from the host."""
        if self._placed is None or self._placed.shape != self.column.shape:
            self._placed = self.column.to(device)
        return self._placed

    def fork(self, batch: int) -> Mark:
        return Mark([*self.columns], self.twin and self.twin.fork(batch))

    def row(self, row: int) -> Mark:
        columns = [c if len(c) == 1 else c[row : row + 1] for c in self.columns]
        return Mark(columns, self.twin and self.twin.row(row))

    def on(self, device: torch.device) -> Mark:
        if self.twin is None:
            return Mark([*self.columns])
        twin = MambaState.of(self.twin.conv.to(device), self.twin.ssm.to(device))
        return Mark([*self.columns], twin)

    @property
    def column(self) -> Tensor:
        """(1 or batch, n) bool, all columns so far."""
        if len(self.columns) > 1:
            rows = max(map(len, self.columns))
            self.columns = [torch.cat([c.expand(rows, -1) for c in self.columns], dim=1)]
        return self.columns[0] if self.columns else torch.zeros(1, 0, dtype=torch.bool)


class MarkedCache(HybridCache):
    """A cache with a `Mark` for each blocked layer, which goes where the states go.

    Attributes:
        marks: by the layer's number.
    """

    marks: dict[int, Mark]

    def fork(self, batch: int, rooms: Sequence[int | None], growing: bool = False) -> HybridCache:
        fork = super().fork(batch, rooms, growing)
        fork.__class__ = MarkedCache
        assert isinstance(fork, MarkedCache)
        fork.marks = {i: mark.fork(batch) for i, mark in self.marks.items()}
        return fork

    def row(self, row: int) -> HybridCache:
        return self._with(super().row(row), {i: mark.row(row) for i, mark in self.marks.items()})

    def share(self) -> HybridCache:
        marks = {i: mark.fork(self.batch) for i, mark in self.marks.items()}
        return self._with(super().share(), marks)

    def on(self, device: torch.device) -> HybridCache:
        moved = super().on(device)
        if moved is self:
            return self
        return self._with(moved, {i: mark.on(device) for i, mark in self.marks.items()})

    def join(self, rows: Sequence[HybridCache]) -> None:
        super().join(rows)
        for i in {i for row in rows for i in marks_of(row)}:
            each = [marks_of(row).get(i, Mark()) for row in rows]
            longest = max(mark.column.shape[1] for mark in each)
            padded = [_padded(mark.column, longest) for mark in each]
            twin = self.marks[i].twin if i in self.marks else None
            # a row's twin is a view of this one, if vision came before the fork
            if twin is None and each[0].twin is not None:
                twin = _side_by_side([mark.twin for mark in each if mark.twin is not None])
            self.marks[i] = Mark([torch.cat(padded)], twin)

    def expect_in_file(self) -> None:
        # a file has no place for marks
        fail("save", "model", "be one in which nothing is blocked", "a blocked view of one")

    @staticmethod
    def _with(cache: HybridCache, marks: dict[int, Mark]) -> HybridCache:
        assert isinstance(cache, MarkedCache)
        cache.marks = marks
        return cache

    @property
    def nbytes(self) -> int:
        twins = [mark.twin for mark in self.marks.values() if mark.twin is not None]
        return super().nbytes + sum(twin.nbytes for twin in twins)


def _padded(column: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(column, (0, length - column.shape[1]))


def _side_by_side(states: Sequence[MambaState]) -> MambaState:
    """One state of these states' rows."""
    conv, ssm = (torch.cat(parts) for parts in zip(*((s.conv, s.ssm) for s in states)))
    return MambaState.of(conv, ssm)


def marks_of(cache: HybridCache) -> dict[int, Mark]:
    """The marks of a cache, which becomes a `MarkedCache` if nothing was written to it yet.

    Raises:
        ValueError: other layers have written to it: what they blocked is not known.
    """
    if not isinstance(cache, MarkedCache):
        if any(_is_used(state) for state in cache.layers):
            rule, remedy = "be read by the blocked model alone", "open the video with that model"
            fail("blocked", "session", rule, "another's", remedy)
        cache.__class__ = MarkedCache
        assert isinstance(cache, MarkedCache)
        cache.marks = {}
    return cache.marks


def _is_used(state: AttentionState | MambaState | None) -> bool:
    if isinstance(state, AttentionState):
        return state.start + state.longest > 0
    return state is not None and bool(state.ssm.any() or state.ring.any())


class Labels(threading.local):
    """The labels of the pass that runs in this thread; blocked layers read them.

    Attributes:
        rows: which kinds of rows are blocked, of INSTRUCTION and RESPONSE.
        decoding: whether the rows are an answer that continues a cache.
        answers: rows of the answer at the end of a sequence without a cache.
    """

    def __init__(self, rows: tuple[str, ...]) -> None:
        self.rows = rows
        self.decoding, self.answers = False, 0
        self._marks: dict[int, Mark] | None = None
        self._start = 0
        self._vision = self._blocked = torch.zeros(0, dtype=torch.bool)

    def blocks(self, kind: str) -> bool:
        return kind in self.rows

    @contextmanager
    def reading(
        self, length: int, segments: tuple[Segment, ...] | None, cache: HybridCache | None
    ) -> Iterator[None]:
        """Label a pass of `length` rows for the block."""
        segments = segments or (Segment(length),)
        if len(segments) > 1:
            not_built("blocked", "segments", "be one sample", len(segments))
        self._marks = None if cache is None else marks_of(cache)
        self.answers = segments[0].query_from_end if cache is None else 0
        self.place(segments[0])
        try:
            yield
        finally:
            self._marks, self.answers = None, 0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Label what is read in the block as an answer."""
        self.decoding = True
        try:
            yield
        finally:
            self.decoding = False

    def place(self, segment: Segment) -> None:
        """Where the vision tokens lie from here on: at the start of a pass and behind a stage."""
        index = segment.index
        if index is not None and not bool((index == index[:1]).all()):
            rule = "have its vision tokens at the same places in each row of a batch"
            not_built("blocked", "segments", rule, "others")
        vision = torch.zeros(segment.length, dtype=torch.bool)
        vision[segment.positions(self._numbers(segment))[0].cpu()] = True
        text = segment.length - self.answers
        blocked = torch.zeros_like(vision)
        if self.blocks(RESPONSE):
            blocked[0 if self.decoding else text :] = True
        if self.blocks(INSTRUCTION) and not self.decoding:
            blocked[:text] = ~vision[:text]
        self._vision, self._blocked, self._start = vision, blocked, 0

    @staticmethod
    def _numbers(segment: Segment) -> Tensor:
        device = None if segment.index is None else segment.index.device
        return torch.arange(segment.vision_present, device=device)[None]

    def passed(self, count: int) -> None:
        """`count` rows have passed a run of layers; the first ones come to the next run."""
        self._start = (self._start + count) % max(len(self._vision), 1)

    def piece(self, count: int) -> Piece:
        """The labels of the `count` rows that pass now."""
        part = slice(self._start, self._start + count)
        vision, blocked = self._vision[part], self._blocked[part]
        flags: list[Any] = [vision.any(), blocked.any(), blocked.all()]
        return Piece(vision, blocked, *map(bool, flags))

    def mark(self, layer: int) -> Mark:
        """What the cache of this pass keeps of a layer."""
        assert self._marks is not None
        return self._marks.setdefault(layer, Mark())
