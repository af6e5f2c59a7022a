"""Whether a question fits the model, and if not, the numbers that do."""

from __future__ import annotations

from timeviper_fast.config import TimeViperConfig
from timeviper_fast.errors import ArgumentError
from timeviper_fast.inference.plan import most, prompt_lengths
from timeviper_fast.layout import Segment
from timeviper_fast.text.prompt import Prompt
from timeviper_fast.video.sampling import Policy, smaller

__all__ = ["check_fits"]


def check_fits(
    config: TimeViperConfig,
    prompt: Prompt,
    frames: int,
    policy: str | Policy,
    max_new_tokens: int,
    images: int = 1,
) -> None:
    """Refuse a prompt that the model cannot read before an hour of video is encoded for it.

    Args:
        config: of the model.
        prompt: the text around the vision tokens, and that between them.
        frames: how many `policy` has chosen.
        policy, max_new_tokens: of the request.
        images: pictures that a single image is cut into, itself included.

    Raises:
        ArgumentError: of `policy` or `max_new_tokens`, with the most that fits; of prompt and
            answer, where not even one frame or one new token does.
    """
    new, runs = max_new_tokens, len(prompt.between) + 1
    group = max(-(-frames // runs), 1)

    def lengths(frames: int, new: int) -> list[int]:
        vision = config.visual_tokens(frames) * images
        shown = prompt.first_runs(-(-frames // group))
        segment = Segment(
            shown.length(vision),
            shown.span(vision),
            text_inside=sum(map(len, shown.between)),
            frame_tokens=config.frame_tokens(frames) * images if frames else 0,
        )
        return prompt_lengths(config.backbone, config.stages, segment, new)

    try:
        lengths(frames, new)
        return
    except ArgumentError as error:
        if error.argument != "prompt and answer":
            raise
        refused = error
    most_frames = most(frames, lambda n: lengths(n, new))
    most_new = most(new, lambda n: lengths(frames, n))
    shorter = f"max_new_tokens={most_new}" if most_new else ""
    rule = f"fit the model's window of {config.backbone.max_position_embeddings} tokens"
    if most_frames:
        fewer = smaller(policy, most_frames)
        ways = " or ".join(way for way in (f"policy={fewer}" if fewer else "", shorter) if way)
        remedy = f"at most {most_frames} frames fit" + (f": {ways}" if ways else "")
        got = f"{policy} with {frames} frames: {refused.value} tokens"
        raise ArgumentError("", "policy", rule, got, remedy)
    if most_new:
        got = f"{new} ({refused.value} tokens)"
        raise ArgumentError("", "max_new_tokens", rule, got, f"at most {most_new} fit: {shorter}")
    raise refused
