"""What the model is asked about a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from timeviper_fast.errors import fail
from timeviper_fast.evaluation.sets.row import SetRow

__all__ = ["STYLES", "Asked", "asked", "expect_style", "tells_duration"]

STYLES = {
    "paper": "the released code's words; the answer is made to begin with 'Best Option: ('",
    "letter": "asks for the letter alone",
    "question": "the question alone; the strict rule takes an option's text for its letter",
}
_FULL_OPTION = "Please provide your answer by stating the letter followed by the full option."
_LETTER = "Answer with the letter of the right option only."
# the words of Video-MME's authors
_SUBTITLES = "This video's subtitles are listed below:"
_FORM = "The output format of the predicted timestamp should be like: 'start to end' seconds"


class Asked(NamedTuple):
    """A prompt, and the words that its answer is made to begin with."""

    prompt: str
    answer_prefix: str = ""


def expect_style(style: str) -> None:
    """Raise an ArgumentError for a style that is unknown."""
    if style not in STYLES:
        fail("eval", "style", f"be one of {', '.join(STYLES)}", style)


def tells_duration(row: SetRow, style: str) -> bool:
    """Whether the prompt of a row says how long the video is: the model need not say it again."""
    return not row.options and style != "question"


def asked(
    row: SetRow, style: str, seconds: float, frames: int, subtitles: Sequence[str] = ()
) -> Asked:
    """The prompt of a row.

    Args:
        row: with options, or a sentence whose span is asked for.
        style: one of STYLES. "paper" has the words of upstream's released code (evaluate.py), in
            which the paper's figures were probably computed.
        seconds: length of the video; the set's own is taken where it tells one.
        frames: frames that the model sees.
        subtitles: lines to show in front of the question.
    """
    expect_style(style)
    if not row.options:
        return Asked(_grounding(row, style, row.duration or seconds, frames))
    shown = [_SUBTITLES, *subtitles] if subtitles else []
    lines = [*shown, row.question, *row.options]
    if style == "paper":
        return Asked("\n".join([*lines, _FULL_OPTION]), "Best Option: (")
    return Asked(
        "\n".join([*lines, _LETTER]) if style == "letter" else "\n".join([*shown, row.question])
    )


def _grounding(row: SetRow, style: str, seconds: float, frames: int) -> str:
    if not tells_duration(row, style):
        return row.question
    return (
        f"The video lasts for {seconds:.2f} seconds, and {frames} frames are uniformly sampled "
        "from it. Investigate the video to identify the segment that matches the textual query "
        f"'{row.question}', and output the start and end timestamps in seconds. {_FORM}."
    )
