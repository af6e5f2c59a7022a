"""How many rows of a prompt pass through each layer, and which layers a question can change.

The asking layer is that of the first stage that selects by attention. In front of it neither the
text before the video nor a vision row depends on the question.
"""

from __future__ import annotations

from dataclasses import dataclass

from timeviper_fast.config import CompressionStage, TimeViperConfig
from timeviper_fast.layout import Segment, VisualSpan, tokens_before_layer, vision_after

__all__ = ["Dropping", "Flow", "asking_layer", "flow"]


@dataclass(frozen=True)
class Dropping:
    """One compression stage and the vision rows that it drops."""

    stage: CompressionStage
    dropped: int

    @property
    def transferred(self) -> int:
        """Dropped rows whose keys and values the text reads."""
        return self.dropped if self.stage.transfer else 0


@dataclass(frozen=True)
class Flow:
    """Rows of a video and of the text in front of it.

    Attributes:
        before: text tokens in front of the video.
        vision: vision rows that enter each layer.
        asking: the asking layer; the number of layers if no stage selects by attention.
        entering: vision rows that reach the asking layer, before its stage; 0 if there is none.
        below: stages in front of the asking layer, each with what it drops.
        above: the stage of the asking layer, and those behind it.
    """

    before: int
    vision: tuple[int, ...]
    asking: int
    entering: int
    below: tuple[Dropping, ...]
    above: tuple[Dropping, ...]

    def rows(self, layer: int) -> int:
        """Rows that enter a layer: the text in front and what is left of the video."""
        return self.before + self.vision[layer]


def asking_layer(config: TimeViperConfig) -> int:
    """Layer of the first stage that selects by attention; the number of layers if none does."""
    layers = (stage.layer for stage in config.stages if stage.select == "attention")
    return next(layers, config.backbone.num_hidden_layers)


def flow(config: TimeViperConfig, before: int, frames: int) -> Flow:
    """Count the rows of `frames` frames behind `before` text tokens."""
    original = config.visual_tokens(frames)
    span, each = VisualSpan(before, original), config.frame_tokens(frames) if frames else 0
    segment = Segment(before + original, span, frame_tokens=each)
    lengths = tokens_before_layer((segment,), config.stages, config.backbone.num_hidden_layers)
    counts = vision_after(segment, config.stages)
    asking, entering = asking_layer(config), 0
    droppings = []
    for stage, present, kept in zip(config.stages, counts, counts[1:]):
        if stage.layer == asking:
            entering = present
        droppings.append(Dropping(stage, present - kept))
    return Flow(
        before,
        tuple(length - before for length in lengths),
        asking,
        entering,
        tuple(d for d in droppings if d.stage.layer < asking),
        tuple(d for d in droppings if d.stage.layer >= asking),
    )
