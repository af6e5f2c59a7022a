"""Where the vision tokens lie in a sequence, and how many tokens reach each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import torch
from torch import Tensor

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import COUNT, INTEGER, expect, fail, instance_of

__all__ = ["Segment", "VisualSpan", "shorten", "tokens_before_layer", "vision_after"]


@dataclass(frozen=True)
class VisualSpan:
    """A stretch of a sequence from one vision token to another: `start`, `length` in tokens."""

    start: int
    length: int

    def __post_init__(self) -> None:
        expect("VisualSpan", self, COUNT, "start", "length")

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class Segment:
    """One sample inside a (possibly packed) sequence.

    Vision is one contiguous run, or several with text between them (a label before each frame):
    `Segment.of_runs` makes the second form. Stages never drop the text between the runs.

    Attributes:
        length: tokens of the sample.
        span: from its first vision token to its last, relative to the sample's first token; length
            0 when it has none.
        query_from_end: the query token of attention stages, counted back from the sample's last
            token (0). Dropping vision tokens in front of it does not change it.
        vision_tokens: vision tokens before any stage dropped some (N0); defaults to those present.
        text_inside: text tokens inside the span; 0 when vision is one contiguous run.
        index: (1 or batch, vision_present) int64, where the vision tokens lie, counted from the
            span's first token, ascending. None for one contiguous run, and in a segment that only
            counts tokens.
        frame_tokens: vision tokens of each frame, or of each clip that is merged as one, before any
            stage: content stages compare them. 0: not known, or frames have unequal numbers.
    """

    length: int
    span: VisualSpan = VisualSpan(0, 0)
    query_from_end: int = 0
    vision_tokens: int = -1
    text_inside: int = 0
    index: Tensor | None = field(default=None, compare=False, repr=False)
    frame_tokens: int = 0

    def __post_init__(self) -> None:
        expect("Segment", self, COUNT, "length", "query_from_end", "text_inside", "frame_tokens")
        expect("Segment", self, INTEGER, "vision_tokens")
        expect("Segment", self, instance_of(VisualSpan), "span")
        if self.text_inside > self.span.length:
            fail("Segment", "text_inside", f"be at most {self.span.length}", self.text_inside)
        if self.index is not None and not self._holds_the_vision(self.index):
            rule = f"be None or an int64 tensor (batch, {self.vision_present})"
            fail("Segment", "index", rule, self.index)
        if self.vision_tokens < 0:
            object.__setattr__(self, "vision_tokens", self.vision_present)
        if self.frame_tokens and self.vision_present % self.frame_tokens:
            rule = f"divide the {self.vision_present} vision tokens"
            fail("Segment", "frame_tokens", rule, self.frame_tokens)
        if self.span.stop > self.length:
            fail("Segment", "span", f"lie inside the sample's {self.length} tokens", self.span)
        text_after = self.length - self.span.stop
        limit = text_after if self.span.length else self.length
        if self.query_from_end >= max(limit, 1):
            fail(
                "Segment",
                "query_from_end",
                f"point at one of the {limit} tokens after the span",
                self.query_from_end,
            )

    @classmethod
    def of_runs(
        cls,
        length: int,
        runs: Sequence[VisualSpan],
        *,
        query_from_end: int = 0,
        device: torch.device | str | None = None,
        frame_tokens: int = 0,
    ) -> Segment:
        """A sample whose vision tokens lie in several runs with text between them.

        Args:
            length: tokens of the sample.
            runs: each relative to the sample's first token, ascending; empty runs are ignored, and
                adjacent ones are joined.
            query_from_end, frame_tokens: as the attributes.
            device: the sequence's device; `index` is copied there once.

        Raises:
            ValueError: runs overlap, descend or leave the sample.
        """
        for first, second in pairwise(runs):
            if second.start < first.stop:
                fail("Segment", "runs", "ascend without overlap", (first, second))
        runs = [run for run in runs if run.length]
        if not runs:
            return cls(length, query_from_end=query_from_end)
        start = runs[0].start
        span = VisualSpan(start, runs[-1].stop - start)
        text_inside = span.length - sum(run.length for run in runs)
        index = None
        if text_inside:
            places = [torch.arange(run.start - start, run.stop - start) for run in runs]
            index = torch.cat(places)[None].to(device)
        return cls(
            length,
            span,
            query_from_end,
            text_inside=text_inside,
            index=index,
            frame_tokens=frame_tokens,
        )

    def _holds_the_vision(self, index: object) -> bool:
        return (
            isinstance(index, Tensor)
            and index.dtype == torch.int64
            and index.ndim == 2
            and index.shape[1] == self.vision_present
        )

    @property
    def vision_present(self) -> int:
        """Vision tokens that are left."""
        return self.span.length - self.text_inside

    @property
    def text(self) -> int:
        """Text tokens."""
        return self.length - self.vision_present

    def after(self, kept: int) -> Segment:
        """The sample after `kept` of its present vision tokens remain: counts only, no index."""
        dropped = self.vision_present - kept
        span = replace(self.span, length=self.span.length - dropped)
        length = self.length - dropped
        return replace(self, length=length, span=span, index=None, frame_tokens=0)

    def counted_anew(self) -> Segment:
        """The sample behind a content stage: later stages count what is present as the original."""
        return replace(self, vision_tokens=self.vision_present)

    def keep(self, kept: Tensor) -> Segment:
        """The sample after only the vision tokens `kept` remain.

        Args:
            kept: (batch, n) int64, numbers among the present vision tokens, ascending.
        """
        left = self.after(kept.shape[1])
        if self.index is None:
            return left
        # a kept token moves forward by the vision tokens dropped before it: its number - its rank
        rank = torch.arange(kept.shape[1], device=kept.device)
        places = self.index.expand(len(kept), -1).gather(1, kept)
        return replace(left, index=places - (kept - rank))

    def runs(self) -> Iterator[tuple[int, int, bool]]:
        """(start, stop, whether it is vision) of each stretch up to the last vision token."""
        if self.index is None:
            if self.span.length:
                yield 0, self.span.start, False
                yield self.span.start, self.span.stop, True
            return
        at, place = self.index[0].tolist(), 0
        for _, group in groupby(enumerate(at), lambda pair: pair[1] - pair[0]):
            places = [self.span.start + offset for _, offset in group]
            if places[0] > place:
                yield place, places[0], False
            place = places[-1] + 1
            yield places[0], place, True

    def positions(self, vision: Tensor) -> Tensor:
        """Where vision tokens lie in the sample: (batch, n) numbers -> (batch, n) positions."""
        if self.index is None:
            return vision + self.span.start
        return self.index.expand(len(vision), -1).gather(1, vision) + self.span.start


def shorten(segments: tuple[Segment, ...], stage: CompressionStage) -> tuple[Segment, ...]:
    """The segments after `stage` has dropped its vision tokens."""
    left = tuple(s.after(stage.kept_count(s.vision_tokens, s.frame_tokens)) for s in segments)
    return tuple(s.counted_anew() for s in left) if stage.by_content else left


def vision_after(segment: Segment, stages: Sequence[CompressionStage]) -> tuple[int, ...]:
    """Vision tokens that are present, and those behind each stage."""
    counts = [segment.vision_present]
    for stage in stages:
        (segment,) = shorten((segment,), stage)
        counts.append(segment.vision_present)
    return tuple(counts)


def tokens_before_layer(
    segments: tuple[Segment, ...], stages: tuple[CompressionStage, ...], num_layers: int
) -> list[int]:
    """Tokens of the whole sequence that enter each layer, computed without running the model."""
    stage_at = {stage.layer: stage for stage in stages}
    counts = []
    for layer in range(num_layers):
        if layer in stage_at:
            segments = shorten(segments, stage_at[layer])
        counts.append(sum(s.length for s in segments))
    return counts
