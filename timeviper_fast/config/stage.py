"""Where vision tokens are dropped inside the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from timeviper_fast.config.backbone import ATTENTION, BackboneConfig
from timeviper_fast.errors import (
    BOOL,
    COUNT,
    RATIO,
    expect,
    expect_one_of,
    fail,
)

__all__ = ["CompressionStage", "Selection", "check_stages"]

Selection = Literal["uniform", "attention"]
Score = Literal["raw", "normed"]
Spacing = Literal["exact", "linspace"]


@dataclass(frozen=True)
class CompressionStage:
    """One place inside the LLM where vision tokens are dropped.

    Attributes:
        layer: the stage runs on the residual stream that enters this layer (0-based).
        select: "uniform" keeps evenly spaced tokens; "attention" those with the highest attention
            from the query token, scored by this layer, which must be an attention layer.
        keep: fraction of the ORIGINAL vision tokens that remain, in (0, 1]. The count is
            trunc(N0 * keep) in float64; a count of 0 is legal.
        transfer: True adds the dropped tokens' content to the text behind the span by gated
            cross-attention (TransV); False only drops them.
        score: the stream that an attention stage scores: "raw" is the residual stream before the
            layer's RMSNorm, without rotary positions, as in TimeViper's checkpoints; "normed" is
            what the layer itself reads, and its queries and keys have the layer's positions, as in
            VideoChat-Flash. Where the stream is large, raw scores underflow to 0 and ties decide,
            so a model that is trained from random weights needs "normed". Uniform stages do not
            read it.
        spacing: how uniform stages space their tokens: "exact" truncates exact quotients
            (`tvkernels.uniform_topk`); "linspace" takes torch's linspace of integers on a CPU, as
            VideoChat-Flash does, which is one off at some lengths. Attention stages ignore it.
    """

    layer: int
    select: Selection
    keep: float
    transfer: bool = True
    score: Score = "raw"
    spacing: Spacing = "exact"

    def __post_init__(self) -> None:
        owner = "CompressionStage"
        expect(owner, self, COUNT, "layer")
        expect_one_of(owner, "select", self.select, ("uniform", "attention"))
        expect(owner, self, RATIO, "keep")
        expect(owner, self, BOOL, "transfer")
        expect_one_of(owner, "score", self.score, ("raw", "normed"))
        expect_one_of(owner, "spacing", self.spacing, ("exact", "linspace"))

    def kept_count(self, vision_tokens: int) -> int:
        """Vision tokens that remain of `vision_tokens` original ones (float64, truncated)."""
        return int(vision_tokens * float(self.keep))


def check_stages(stages: tuple[CompressionStage, ...], backbone: BackboneConfig) -> None:
    """Check that stages fit the backbone: layers exist and rise strictly, keep ratios never rise.

    Raises:
        ValueError: naming the stage, the rule and the value.
    """
    layer_before, keep_before = -1, 1.0
    per = backbone.layers_per_block
    unit = "layer" if per == 1 else "block"
    for i, stage in enumerate(stages):
        owner, last = f"stages[{i}]", backbone.num_hidden_layers - 1
        if not isinstance(stage, CompressionStage):
            fail("", owner, "be a CompressionStage", stage)
        if stage.layer % per:
            fail(owner, "layer", f"be a multiple of {per}, the layers of a block", stage.layer)
        if stage.layer > last:
            fail(owner, unit, f"be at most {last // per}, the last {unit}", stage.layer // per)
        if stage.layer <= layer_before:
            rule = f"lie behind the stage before it ({backbone.named(layer_before)})"
            fail(owner, unit, rule, stage.layer // per)
        if stage.keep > keep_before:
            fail(owner, "keep", f"not exceed the stage before it ({keep_before})", stage.keep)
        if stage.select == "attention" and backbone.pattern[stage.layer] != ATTENTION:
            layers = ", ".join(map(str, backbone.layers_of(ATTENTION)))
            rule = f"be an attention layer ({layers or 'there is none'}) for select='attention'"
            fail(owner, "layer", rule, f"{stage.layer} ({backbone.pattern[stage.layer]})")
        layer_before, keep_before = stage.layer, stage.keep
