"""The label in front of each frame of a video: its number, its second and the vision marks.

    Frame 1 sampled at 0.00 seconds: <img>[vision tokens]</img>

Frames that are encoded together share one label. Labels are text: no compression stage drops them,
so a frame of which no vision token is left still has its label and its two marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from timeviper_fast.errors import fail

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FrameLabels", "LabelIds"]


@dataclass(frozen=True)
class FrameLabels:
    """How a video's frames are written.

    Attributes:
        lead: text in front of the first label.
        separator: text between one frame and the next label.
        tail: text behind the last frame, and behind a picture.
        opens, closes: the marks around vision tokens, each one token of the tokenizer.
    """

    lead: str = ""
    separator: str = "\n"
    tail: str = ""
    opens: str = "<img>"
    closes: str = "</img>"

    @staticmethod
    def estimate(group: int) -> int:
        """About how many tokens a label of `group` frames has, marks included, by a tokenizer that
        splits numbers into digits."""
        return 6 + 14 * group

    def label(self, seconds: Sequence[float | None], first: int = 0) -> str:
        """The label of frames that are encoded together.

        Args:
            seconds: when each is shown; None where that is not known.
            first: frames in front of them.
        """
        names: list[str] = []
        for number, second in enumerate(seconds, first + 1):
            name = f"frame {number}" if names else f"Frame {number}"
            names.append(name if second is None else f"{name} sampled at {second:.2f} seconds")
        return " and ".join(names) + ": "

    def written(self, seconds: Sequence[float | None], vision: str, group: int = 1) -> str:
        """A whole video as text, in which `vision` stands for each label's vision tokens.

        Args:
            seconds: of each frame.
            vision: text between two marks.
            group: frames that are encoded together.
        """
        shown = [
            self.label(seconds[first : first + group], first) + self.opens + vision + self.closes
            for first in range(0, len(seconds), group)
        ]
        return self.lead + self.separator.join(shown) + self.tail


class LabelIds:
    """A tokenizer's ids of labels. Label and marks are tokenised one by one.

    Raises:
        ValueError: the tokenizer lacks one of the marks as a token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, labels: FrameLabels) -> None:
        self._tokenizer, self._labels = tokenizer, labels
        self._opens, self._closes = (
            _token(tokenizer, mark) for mark in (labels.opens, labels.closes)
        )

    def openings(
        self, seconds: Sequence[float | None], group: int = 1, first: int = 0
    ) -> list[list[int]]:
        """Ids in front of the vision tokens of each label, its opening mark included.

        Behind another frame they begin with that frame's closing mark.

        Args:
            seconds: of each frame.
            group: frames that are encoded together.
            first: frames in front of them, in whole groups.
        """
        return [
            self._opening(seconds[start : start + group], first + start)
            for start in range(0, len(seconds), group)
        ]

    def _opening(self, seconds: Sequence[float | None], first: int) -> list[int]:
        text, closing = self._labels.label(seconds, first), list[int]()
        if first:
            text, closing = self._labels.separator + text, [self._closes]
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return [*closing, *ids, self._opens]


def _token(tokenizer: PreTrainedTokenizerBase, mark: str) -> int:
    """The id of a mark."""
    found = tokenizer.convert_tokens_to_ids(mark)
    # an unknown token gets the id of <unk>
    if not isinstance(found, int) or tokenizer.convert_ids_to_tokens(found) != mark:
        rule = f"have {mark} as a token, which the chat template puts beside vision tokens"
        fail("prompt", "the tokenizer", rule, None)
    return found
