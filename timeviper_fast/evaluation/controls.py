"""Control experiments of a needle test: each runs the same questions with one thing changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import fail
from timeviper_fast.inference.prefix import asking_stage
from timeviper_fast.model.model import TimeViperNetwork

__all__ = ["CONTROLS", "Variant", "expect_controls", "variants", "with_variant"]

CONTROLS = {
    "blind": "the needed frames are plain ones",
    "no-video": "no vision tokens in the prompt",
    "needle-only": "the needed frames alone, no token dropped",
    "uniform": "evenly spaced tokens in place of those with most attention",
    "raw": "scores from the stream before the norm",
    "normed": "scores from the stream after the norm",
    "no-transfer": "dropped tokens add nothing to the text",
}


@dataclass(frozen=True)
class Variant:
    """One way to run the test.

    Attributes:
        control: "none", or one of CONTROLS.
        keep: share of the vision tokens that the asking stage keeps; 1 if no stage asks.
        stages: the model's compression stages in this variant.
    """

    control: str
    keep: float
    stages: tuple[CompressionStage, ...]

    def __str__(self) -> str:
        return f"keep {self.keep:g}" + ("" if self.control == "none" else f", {self.control}")


def expect_controls(controls: Sequence[str]) -> None:
    """Raise an ArgumentError for a control that is unknown."""
    if unknown := set(controls) - set(CONTROLS):
        fail("needle", "controls", f"be some of {', '.join(CONTROLS)}", sorted(unknown)[0])


def variants(
    stages: tuple[CompressionStage, ...], keeps: Sequence[float], controls: Sequence[str]
) -> list[Variant]:
    """The test itself and each control, at each keep value.

    Args:
        stages: the model's own compression stages.
        keeps: keep values of the asking stage; () takes the model's own.
        controls: some of CONTROLS. "no-video" and "needle-only" run once, whatever `keeps` is.

    Raises:
        ArgumentError: a control is unknown, or needs an attention stage and the model has none, or
            `keeps` is given for a model without exactly one attention stage.
    """
    expect_controls(controls)
    asking = asking_stage(stages)
    by_attention = [stage for stage in stages if stage.select == "attention"]
    if keeps and len(by_attention) != 1:
        rule = "be left out for a model without exactly one attention stage"
        fail("needle", "keeps", rule, list(keeps))
    found = []
    for control in ("none", *dict.fromkeys(controls)):
        if control in ("uniform", "raw", "normed") and not by_attention:
            rule = "not change an attention stage of a model that has none"
            fail("needle", "controls", rule, control)
        if control == "no-transfer" and not any(stage.transfer for stage in stages):
            rule = "not turn off the transfer of a model that has none"
            fail("needle", "controls", rule, control)
        for keep in dict.fromkeys(keeps) or (None,):
            own = list(stages)
            if keep is not None:
                own[asking] = replace(own[asking], keep=keep)
            own = [_changed(stage, control) for stage in own]
            found.append(Variant(control, own[asking].keep if by_attention else 1.0, tuple(own)))
            if control in ("no-video", "needle-only"):
                found[-1] = replace(found[-1], keep=1.0)
                break
    return found


def _changed(stage: CompressionStage, control: str) -> CompressionStage:
    if control == "needle-only":
        return replace(stage, keep=1.0, prune=0.0)
    if stage.select == "attention":
        if control == "uniform":
            return replace(stage, select="uniform")
        if control in ("raw", "normed"):
            return replace(stage, score=control)  # type: ignore[arg-type]
    return stage


@contextmanager
def with_variant(model: TimeViperNetwork, variant: Variant) -> Iterator[None]:
    """Give the model the variant's stages for the block, then restore its own.

    Without transfer, the gates are closed (alpha 0): the same tokens are kept.
    """
    own = model.backbone.stages
    gates = [weight for name, weight in model.named_parameters() if name.endswith(".alpha")]
    alphas = [gate.detach().clone() for gate in gates]
    model.set_stages(variant.stages)
    try:
        with torch.no_grad():
            if variant.control == "no-transfer":
                for gate in gates:
                    gate.zero_()
        yield
    finally:
        model.set_stages(own)
        with torch.no_grad():
            for gate, alpha in zip(gates, alphas):
                gate.copy_(alpha)
