"""Compression stages in words, as users write them: `none`, a rule by its name, or a list.

A list is `uniform:4:0.75,attention:18:0.25:normed`: how tokens are chosen, the block in front of
which the stage stands, and the fraction of the original vision tokens that stays. Attention stages
say which stream they score. In front of them may stand `content:0.7`, which removes that fraction
of the vision tokens before the LLM: those that differ least from the frame before. Blocks are
counted as the LLM's own project counts them, which for Qwen2 are two layers of ours each. Such
stages have no weights: they only drop tokens. The word `own`, as in `content:0.7,own`, stands for
the model's own stages, with their transfer.
"""

from __future__ import annotations

from timeviper_fast.config import CompressionStage, Match, TimeViperConfig, check_stages
from timeviper_fast.errors import ArgumentError
from timeviper_fast.presets import FLASH

__all__ = ["STAGES_FORMS", "parse_stages"]

# rules of other projects, with the blocks and ratios that they recommend
_NAMED = {
    # VideoChat-Flash's model card
    "uniform0_attention": "uniform:4:0.75,attention:18:0.25:normed",
    # the defaults of PyramidDrop, and of VideoChat-Flash where its user names none
    "pyramiddrop": "attention:8:0.5:normed,attention:16:0.25:normed,attention:24:0.125:normed",
}
STAGES_FORMS = (
    f"none, {', '.join(_NAMED)}, or a list as {_NAMED['uniform0_attention']} or content:0.7,own"
)

Stages = str | tuple[CompressionStage, ...] | list[CompressionStage]


def parse_stages(stages: Stages, config: TimeViperConfig) -> tuple[CompressionStage, ...]:
    """Read stages; those that are built already are returned as they are.

    Args:
        stages: text of the form above, or stages with our layer numbers.
        config: the model that they are for. VideoChat-Flash's, known by its chat template, space
            tokens as that project does; all others exactly.

    Raises:
        ArgumentError: of `stages`: another form, or they do not fit the LLM.
    """
    if not isinstance(stages, (str, list, tuple)):
        form = f"be text ({STAGES_FORMS}) or a tuple of CompressionStage"
        raise ArgumentError("", "stages", form, repr(stages))
    if isinstance(stages, str):
        words = _NAMED.get(stages.strip(), stages.strip())
        pieces = [] if words in ("", "none") else [piece.strip() for piece in words.split(",")]
        parts = (config.stages if p == "own" else (_parse(p, config),) for p in pieces)
        built = tuple(stage for part in parts for stage in part)
    else:
        built = tuple(stages)
    try:
        check_stages(built, config.backbone)
    except ArgumentError as error:
        part = f" {stages!r}: {error.owner}: {error.argument}" if isinstance(stages, str) else ""
        if not part:
            raise
        raise ArgumentError("", "stages", error.rule, error.value, part=part) from None
    return built


def _parse(text: str, config: TimeViperConfig) -> CompressionStage:
    backbone = config.backbone
    select, *rest = text.split(":")
    if select == "content" and len(rest) == 1:
        return _by_content(text, rest[0], config)
    score = rest.pop() if select == "attention" and len(rest) == 3 else ""
    if select not in ("uniform", "attention") or len(rest) != 2:
        raise ArgumentError("", "stages", f"be {STAGES_FORMS}", repr(text))
    if select == "attention" and score not in ("raw", "normed"):
        rule = "say which stream attention scores, raw or normed, as attention:18:0.25:normed"
        raise ArgumentError("", "stages", rule, repr(text))
    try:
        block, keep = int(rest[0]), float(rest[1])
    except ValueError:
        raise ArgumentError("", "stages", f"be {STAGES_FORMS}", repr(text)) from None
    blocks = backbone.num_hidden_layers // backbone.layers_per_block
    if not 1 <= block < blocks:
        rule = f"stand before one of the blocks 1 to {blocks - 1}"
        raise ArgumentError("", "stages", rule, block, part=f" {text!r}")
    try:
        return CompressionStage(
            block * backbone.layers_per_block,
            "uniform" if select == "uniform" else "attention",
            keep,
            transfer=False,
            score="raw" if score == "raw" else "normed",
            spacing="linspace" if config.template == FLASH.template else "exact",
        )
    except ArgumentError as error:
        part = f" {text!r}: {error.argument}"
        raise ArgumentError("", "stages", error.rule, error.value, part=part) from None


def _by_content(text: str, share: str, config: TimeViperConfig) -> CompressionStage:
    """`content:SHARE`. Merged tokens have no fixed place, so they look for their best match."""
    try:
        prune = float(share)
    except ValueError:
        raise ArgumentError("", "stages", f"be {STAGES_FORMS}", repr(text)) from None
    match: Match = "best" if config.projector.merges else "place"
    try:
        return CompressionStage(0, "content", 1.0, transfer=False, prune=prune, match=match)
    except ArgumentError as error:
        rule = f"remove a share that can {error.rule}"
        raise ArgumentError("", "stages", rule, error.value, part=f" {text!r}") from None
