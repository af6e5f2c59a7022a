"""A video, read once below the asking stage: what no question can change.

The asking stage is the first that selects by attention, so what it keeps depends on the question.
Text in front of the video and the vision tokens never see the question, so below that stage their
states are the same for all questions. Rows pass through the layers in blocks of `chunk` rows,
however they arrive, so that neither the pushes nor the length change a bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.inference.content_stage import ContentStage
from timeviper_fast.inference.rows import Grid, Rows, RowStore
from timeviper_fast.inference.thinning import (
    Announced,
    Even,
    Thinning,
    UniformStage,
    rhythm_of,
    shares,
)
from timeviper_fast.layout import Segment, VisualSpan, vision_after
from timeviper_fast.model.cache import AttentionState, HybridCache
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.transv import TransV
from timeviper_fast.stops import StopWatch

__all__ = ["Prefix", "asking_stage"]

T = TypeVar("T")


def asking_stage(stages: Sequence[CompressionStage]) -> int:
    """Index of the first stage that selects by attention; the number of stages if none does."""
    return next((i for i, stage in enumerate(stages) if stage.select == "attention"), len(stages))


class Prefix:
    """A video below the asking stage, while it is read.

    Args:
        backbone: its stages must not change any more.
        chunk: rows per pass through the layers; None takes all at the end.
        batch: videos of one layout side by side.
        expected: length and vision of everything that will be pushed, which makes every stage exact
            and every buffer exact in size; None where a stream goes on for an unknown time.
        labelled: whether labels of frames are pushed, of which `expected` counts none: the buffers
            then grow.
        even: without `expected`, whether stages may thin by a fixed rhythm where theirs is unknown
            until the end; such a prefix is not exact.
        frame_tokens: vision tokens of each frame, which a content stage needs without `expected`.
        on_pass: called with (rows times layers) when a block has been queued through its layers.
        watch: times the compression stages.
        store: where the rows that reach the asking stage, and the keys and values of dropped ones,
            are kept: the model's device, or the host, from where a question reads them once.

    Raises:
        ValueError: without `expected` and `even`, a stage whose rhythm is not known.
    """

    def __init__(
        self,
        backbone: HybridBackbone,
        *,
        chunk: int | None,
        batch: int = 1,
        expected: Segment | None = None,
        labelled: bool = False,
        even: bool = False,
        frame_tokens: int = 0,
        on_pass: Callable[[int], None] | None = None,
        watch: StopWatch | None = None,
        store: torch.device | None = None,
    ) -> None:
        self.store = store or backbone.embeddings.weight.device
        self.backbone, self.chunk, self.batch, self.expected = backbone, chunk, batch, expected
        self.on_pass, self.watch, self.even = on_pass, watch, even
        self.frame_tokens = frame_tokens if expected is None else expected.frame_tokens
        self.growing = expected is None or labelled
        self.asking = asking_stage(backbone.stages)
        self.last: Tensor | None = None
        self.broken = self.ended = self.begun = False
        self.length = self.vision_tokens = self.front = self.trailing = self.numbered = 0
        self.forgetful = False
        weight = backbone.embeddings.weight
        self.cache = HybridCache(
            backbone.config,
            self._capacities(),
            batch=batch,
            device=weight.device,
            dtype=weight.dtype,
            growing=self.growing,
        )
        below = backbone.stages[: self.asking]
        self.stages = [
            self._content_stage(stage) if stage.by_content else self._stage(i, share)
            for i, (stage, share) in enumerate(zip(below, shares(below)))
        ]
        self.grids = [Grid(chunk) for _ in range(self.asking + 1)]
        # numbers of the vision tokens whose keys and values each run of layers holds; -1 for text
        self.passed: list[list[Tensor]] = [[] for _ in self.grids]
        # of forgotten videos' beginnings, the numbers that are left
        self.left = torch.empty(0, dtype=torch.int64)
        capacity = self._expected_rows()[-1] if self.has_asking else 0
        empty = torch.empty(0, weight.shape[1], device=self.store, dtype=weight.dtype)
        self.rows = RowStore(capacity, empty, batch, self.growing)

    @property
    def device(self) -> torch.device:
        return self.backbone.embeddings.weight.device

    @property
    def nbytes(self) -> int:
        """Bytes of what has passed the layers: states, rows, keys and values."""
        dropped = sum(stage.dropped.nbytes for stage in self.stages if stage.dropped is not None)
        held = sum(stage.nbytes for stage in self.stages if isinstance(stage, ContentStage))
        return self.cache.nbytes + self.rows.nbytes + dropped + held

    @property
    def has_asking(self) -> bool:
        return self.asking < len(self.backbone.stages)

    def _capacities(self) -> list[int | None]:
        """Tokens of each layer below the asking stage; None for the others."""
        return self._of_layers(self._expected_rows())

    def _expected_rows(self) -> list[int]:
        """Rows that each run of layers will see, or those to begin with."""
        below = self.backbone.stages[: self.asking]
        if self.expected is None:
            return [self.chunk or 256] * (len(below) + 1)
        text = self.expected.length - self.expected.vision_tokens
        return [text + left for left in vision_after(self.expected, below)]

    def _content_stage(self, stage: CompressionStage) -> ContentStage:
        if self.batch > 1:
            rule = "be 1 with a content stage, which keeps other tokens of each video"
            fail("session", "batch", rule, self.batch)
        if self.expected is None and not self.even:
            rule = "not select by content in a stream, where frames that will come decide too"
            remedy = "announce the number of frames, or allow even=True"
            fail("stream", "stages", rule, stage.select, remedy)
        frames, text = None, 0
        if self.expected is not None:
            frames = self.expected.vision_tokens // max(self.frame_tokens, 1)
            text = self.expected.length - self.expected.vision_tokens
        like = self.backbone.embeddings.weight[:0].to(self.store)
        return ContentStage(stage, self.frame_tokens, frames, text, like)

    def _stage(self, i: int, share: Fraction) -> UniformStage:
        module = self.backbone.transv[i]
        assert isinstance(module, TransV)
        stage, config = module.stage, self.backbone.config
        thinning: Thinning
        if self.expected is not None:
            counts = vision_after(self.expected, self.backbone.stages[: i + 1])
            present = counts[i]
            kept = module.spaced(present, counts[i + 1], torch.device("cpu"))
            thinning = Announced(kept, present, rhythm_of(share))
            room = present - len(kept)
        else:
            made = rhythm_of(share)
            if made is None and not self.even:
                rule = f"keep (p - 1) / p of what reaches a uniform stage, not {share}, in a stream"
                remedy = "announce the number of frames, or allow even=True"
                fail("stream", "stages", rule, f"keep={stage.keep:g}", remedy)
            # what windows of a content stage leave is approximate, so that no number is refused
            windows = self.backbone.stages[0].by_content
            thinning = Even(share) if windows or made is None else made
            room = self.chunk or 256
        dropped = None
        if stage.transfer:
            weight = self.backbone.embeddings.weight
            shape = (self.batch, room, config.num_key_value_heads, config.head_dim)
            dropped = AttentionState(shape, self.store, weight.dtype, growing=self.growing)
        return UniformStage(module, thinning, self.chunk, dropped)

    @torch.no_grad()
    def push(self, hidden: Tensor, *, vision: bool, label: bool = False) -> None:
        """Read the next rows: vision tokens, or text in front of them or between them.

        Args:
            hidden: (batch, n, d_model) embeddings or visual tokens.
            vision: whether they are vision tokens.
            label: whether they are the label of the frame that comes next: it belongs to the video,
                and is forgotten with the first vision token of that frame.

        Raises:
            ValueError: the prefix has ended, or an earlier push broke off midway.
        """
        self._check()
        count = hidden.shape[1]
        source = torch.full((count,), -2 - self.numbered if label else -1)
        if (vision or label) and count and not (self.begun or self.numbered):
            self.front, self.begun = self.length, True
        if vision and count:
            source = torch.arange(self.numbered, self.numbered + count)
        # an interrupted pass leaves some layers ahead of others
        self.broken = True
        self._arrive(0, Rows(hidden, source))
        self.length += count
        if vision and count:
            self.vision_tokens += count
            self.numbered += count
            self.trailing = 0
        else:
            self.trailing += count
        self.broken = False

    def _check(self) -> None:
        if self.broken:
            rule = "be whole: reading it was interrupted midway"
            fail("session", "the video", rule, "half read", "reopen it or load its last save")
        if self.ended:
            fail("session", "the video", "still be open", "one that has ended")

    def _arrive(self, run: int, rows: Rows) -> None:
        """Rows in front of the layers behind stage `run - 1`."""
        stage = self.stages[run] if run < self.asking else None
        if isinstance(stage, ContentStage):
            # there is no layer in front of it
            self._let_go(run, stage, stage.push(rows))
            return
        for block in self.grids[run].push(rows):
            self._through(run, block)

    def _through(self, run: int, block: Rows) -> None:
        passage = self.backbone.run(
            block.hidden,
            (block.segment,),
            cache=self.cache,
            start_stage=run - 1 if run else None,
            stop_stage=run,
            staged=True,
            on_pass=self.on_pass,
        )
        out = Rows(passage.hidden, block.source)
        self.passed[run].append(block.source)
        if run < self.asking:
            self._arrive(run + 1, self._thin(run, out))
        elif self.has_asking:
            self.rows.append(out)
        else:
            self.last = out.hidden[:, -1:].clone()

    def _let_go(self, run: int, stage: ContentStage, leaving: Iterator[Rows]) -> None:
        """Rows that leave a content stage, each part when the one before is through."""
        while True:
            with self.backbone.timed(self.watch, run) as stop:
                rows = next(leaving, None)
                stop.tokens = f"{stage.arrived} -> {sum(map(len, stage.kept))}"
            if rows is None:
                return
            # rows that were held elsewhere come back
            self._arrive(run + 1, Rows(rows.hidden.to(self.device), rows.source))

    def _thin(self, number: int, rows: Rows) -> Rows:
        with self.backbone.timed(self.watch, number) as stop:
            stage = self.stages[number]
            assert isinstance(stage, UniformStage)
            left = stage.push(rows)
            if self.watch is not None:
                stop.tokens = f"{stage.arrived} -> {sum(map(len, stage.kept))}"
        return left

    @torch.no_grad()
    def finish(self) -> None:
        """Let everything through that waits; nothing can be pushed any more.

        Raises:
            ValueError: not what was expected has come, or text stands behind the last vision token
                (it belongs to the question), or the number of tokens does not fit the stages.
        """
        self._check()
        if self.trailing and self.vision_tokens:
            rule = "end with a vision token: text behind it belongs to the question"
            fail("session", "the video", rule, f"{self.trailing} text tokens")
        if self.expected is not None:
            got, want = (self.length, self.vision_tokens), self.expected
            length = self.length if self.growing else want.length
            if got != (length, want.vision_tokens):
                rule = f"have {want.vision_tokens} vision tokens of {want.length}, as announced"
                raise ArgumentError("session", "the video", rule, f"{got[1]} of {got[0]}")
        self.broken = True
        # as on a fork: a stream that is asked here gets the same bits
        self.cache = self.cache.split()
        for run, grid in enumerate(self.grids):
            for block in grid.rest():
                self._through(run, block)
            stage = self.stages[run] if run < self.asking else None
            if isinstance(stage, ContentStage):
                self._let_go(run, stage, stage.end())
            elif stage is not None:
                for rows in stage.end(self.came(run), self._counted, not self.forgetful):
                    self._arrive(run + 1, rows)
        self.cache = self.cache.joined()
        self.broken, self.ended = False, True

    @property
    def _counted(self) -> int:
        """Vision tokens of which uniform stages keep a share."""
        first = self.stages[0] if self.stages else None
        by_content = isinstance(first, ContentStage)
        return len(self.came(1)) if by_content else self.vision_tokens

    def came(self, number: int) -> Tensor:
        """(n,) int64, the video's tokens that came to a stage, without forgotten ones."""
        return self.stages[number - 1].kept_numbers if number else self.numbers

    @property
    def numbers(self) -> Tensor:
        """(vision_tokens,) int64, the video's tokens; not all of them once some are forgotten."""
        known = len(self.left)
        fresh = torch.arange(self.numbered - self.vision_tokens + known, self.numbered)
        return torch.cat([self.left, fresh])

    @property
    def through(self) -> int:
        """All vision tokens below this number have passed every layer and stage."""
        waiting = [part.source for grid in self.grids for part in grid.pending]
        waiting += [part.source for stage in self.stages for part in stage.grid.pending]
        waiting += [stage.held.source for stage in self.stages if stage.held is not None]
        least = [int(source[source >= 0].min()) for source in waiting if (source >= 0).any()]
        return min(least, default=self.numbered)

    @torch.no_grad()
    def forget(self, gone: Tensor) -> None:
        """Forget vision tokens and the labels in front of them: keys, values and rows. Mamba-2
        states have seen them and stay.

        What is asked from now on is no longer exact.

        Args:
            gone: (n,) int64 numbers of tokens, below `through`.
        """
        self._check()
        if not len(gone):
            return
        self.broken = True
        stays = []
        # labels have the numbers -2 - n, with n of the vision token behind them
        rows = torch.cat([gone, -2 - gone])
        for run, passed in enumerate(self.passed):
            numbers = torch.cat([gone[:0], *passed])
            stays.append(~torch.isin(numbers, rows))
            self.passed[run] = [numbers[stays[run]]]
        for state, mask in zip(self.cache.layers, self._of_layers(stays)):
            if isinstance(state, AttentionState) and mask is not None:
                state.select(mask)
        for stage in self.stages:
            # a stream with a bound has no content stage
            assert isinstance(stage, UniformStage)
            stage.forget(gone)
        if self.has_asking:
            self.rows.forget(rows)
        numbers = self.numbers
        self.left = numbers[~torch.isin(numbers, gone)]
        self.length -= int((~stays[0]).sum())
        self.vision_tokens -= len(gone)
        self.forgetful, self.broken = True, False

    def fork(self) -> Prefix:
        """One that goes another way, or ends, while this goes on. They share what was read."""
        self._check()
        fork = copy.copy(self)
        fork.cache = self.cache.share()
        fork.stages = [stage.fork() for stage in self.stages]
        fork.grids = [grid.fork() for grid in self.grids]
        fork.passed = [[*passed] for passed in self.passed]
        fork.rows = self.rows.fork()
        fork.on_pass = fork.watch = None
        return fork

    def _of_layers(self, runs: Sequence[T]) -> list[T | None]:
        """What belongs to each layer's run; None from the asking stage on."""
        stages = self.backbone.stages
        rooms: list[T | None] = []
        for layer in range(self.backbone.config.num_hidden_layers):
            run = sum(stage.layer <= layer for stage in stages)
            rooms.append(runs[run] if run < len(runs) else None)
        return rooms

    @property
    def segment(self) -> Segment:
        """Length and vision of all that was pushed, as counts."""
        inside = self.length - self.front - self.vision_tokens if self.vision_tokens else 0
        span = VisualSpan(self.front, inside + self.vision_tokens)
        each = self.frame_tokens
        return Segment(self.length, span, text_inside=inside, frame_tokens=each)
