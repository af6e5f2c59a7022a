"""Where the vision tokens lie in a sequence, and how many tokens reach each layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import COUNT, INTEGER, expect, fail, instance_of

__all__ = ["Segment", "VisualSpan", "shorten", "tokens_before_layer"]


@dataclass(frozen=True)
class VisualSpan:
    """The contiguous run of vision tokens inside a sequence: `start`, `length` in tokens."""

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

    Attributes:
        length: tokens of the sample.
        span: its vision tokens, relative to the sample's first token; length 0 when it has none.
        query_from_end: the token that asks in an attention stage, counted back from the sample's
            last token (0). Dropping vision tokens in front of it does not move it.
        vision_tokens: vision tokens before any stage dropped some (N0); defaults to the span's.
    """

    length: int
    span: VisualSpan = VisualSpan(0, 0)
    query_from_end: int = 0
    vision_tokens: int = -1

    def __post_init__(self) -> None:
        expect("Segment", self, COUNT, "length", "query_from_end")
        expect("Segment", self, INTEGER, "vision_tokens")
        expect("Segment", self, instance_of(VisualSpan), "span")
        if self.vision_tokens < 0:
            object.__setattr__(self, "vision_tokens", self.span.length)
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

    def after(self, kept: int) -> Segment:
        """The same sample once only `kept` of its present vision tokens remain."""
        dropped = self.span.length - kept
        return replace(self, length=self.length - dropped, span=replace(self.span, length=kept))


def shorten(segments: tuple[Segment, ...], stage: CompressionStage) -> tuple[Segment, ...]:
    """What `stage` leaves of every sample."""
    return tuple(s.after(stage.kept_count(s.vision_tokens)) for s in segments)


def tokens_before_layer(
    segments: tuple[Segment, ...], stages: tuple[CompressionStage, ...], num_layers: int
) -> list[int]:
    """Tokens of the whole sequence that enter each layer; nothing has to run to know them."""
    stage_at = {stage.layer: stage for stage in stages}
    counts = []
    for layer in range(num_layers):
        if layer in stage_at:
            segments = shorten(segments, stage_at[layer])
        counts.append(sum(s.length for s in segments))
    return counts
