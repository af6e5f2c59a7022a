"""Where vision tokens are dropped inside the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from timeviper_fast.config.backbone import ATTENTION, BackboneConfig
from timeviper_fast.errors import (
    BOOL,
    COUNT,
    RATIO,
    SHARE,
    expect,
    expect_one_of,
    fail,
)

__all__ = ["CompressionStage", "Match", "Selection", "check_stages"]

Selection = Literal["uniform", "attention", "content"]
Score = Literal["raw", "normed"]
Spacing = Literal["exact", "linspace"]
Match = Literal["place", "best"]


@dataclass(frozen=True)
class CompressionStage:
    """One place inside the LLM where vision tokens are dropped.

    Attributes:
        layer: the stage runs on the residual stream that enters this layer (0-based).
        select: "uniform" keeps evenly spaced tokens; "attention" those with the highest attention
            from the query token, scored by this layer, which must be an attention layer; "content"
            those that differ most from the frame before, over the whole video. It stands at layer
            0, in front of all other stages.
        keep: fraction of the ORIGINAL vision tokens that remain, in (0, 1]. The count is
            trunc(N0 * keep) in float64; a count of 0 is legal. Behind a content stage N0 counts
            what that has left. Of a content stage itself it is 1: see `prune`.
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
        prune: fraction of the vision tokens that a content stage removes, in [0, 1). It keeps
            max(n, trunc(N0 * (1 - prune))) of them, with n tokens per frame; (1 - prune) is taken
            in float64, so a share to keep would give other counts. 0 for all other stages.
        match: with which token of the frame before a content stage compares: "place" with the one
            at the same place; "best" with the most similar one, as merged tokens have no fixed
            place. The other stages ignore it.
    """

    layer: int
    select: Selection
    keep: float
    transfer: bool = True
    score: Score = "raw"
    spacing: Spacing = "exact"
    prune: float = 0.0
    match: Match = "place"

    def __post_init__(self) -> None:
        owner = "CompressionStage"
        expect(owner, self, COUNT, "layer")
        expect_one_of(owner, "select", self.select, ("uniform", "attention", "content"))
        expect(owner, self, RATIO, "keep")
        expect(owner, self, SHARE, "prune")
        expect(owner, self, BOOL, "transfer")
        expect_one_of(owner, "score", self.score, ("raw", "normed"))
        expect_one_of(owner, "spacing", self.spacing, ("exact", "linspace"))
        expect_one_of(owner, "match", self.match, ("place", "best"))
        own = "for select='content'"
        if self.select != "content":
            if self.prune:
                fail(owner, "prune", f"be 0 except {own}", self.prune)
        elif self.layer:
            fail(owner, "layer", f"be 0 {own}", self.layer)
        elif self.keep != 1:
            fail(owner, "keep", f"be 1 {own}", self.keep, "set the share to remove, prune")
        elif self.transfer:
            fail(owner, "transfer", f"be False {own}", self.transfer)

    @property
    def by_content(self) -> bool:
        """Whether it keeps the tokens that differ most from the frame before."""
        return self.select == "content"

    def kept_count(self, vision_tokens: int, frame_tokens: int = 0) -> int:
        """Vision tokens that remain of `vision_tokens` original ones (float64, truncated).

        Args:
            frame_tokens: those of a frame, which a content stage needs.

        Raises:
            ValueError: a content stage, and no such number.
        """
        if not self.by_content:
            return int(vision_tokens * float(self.keep))
        if vision_tokens and not frame_tokens:
            rule = "be known for a content stage: all frames must have equally many vision tokens"
            fail("", "frame_tokens", rule, frame_tokens)
        kept = int(vision_tokens * (1 - float(self.prune)))
        return min(max(kept, frame_tokens), vision_tokens)


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
        if stage.select == "content" and i:
            rule = "stand in the first stage alone (the stage of a model's own may be one)"
            fail(owner, "content", rule, f"stage {i}")
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
