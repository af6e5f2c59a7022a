"""A video's frames on their way into the LLM, each behind its label.

A label is text. It is read with its frame and forgotten with it, and no stage drops it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from timeviper_fast.config import TimeViperConfig
from timeviper_fast.inference.encode import Encoded
from timeviper_fast.inference.prefix import Prefix
from timeviper_fast.text.prompt import label_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Labeller", "push_frames", "runs_of"]


class Labeller:
    """Labels the frames of one video, if the model's template does.

    Args:
        config: of the model.
        tokenizer: gives the ids.
        picture: whether it is a single picture, which has no label.
        alone: whether the video has one frame, which is encoded by itself.

    Raises:
        ValueError: the tokenizer lacks a mark that stands beside vision tokens.
    """

    def __init__(
        self,
        config: TimeViperConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        picture: bool = False,
        alone: bool = False,
    ) -> None:
        self._ids = None if picture else label_ids(tokenizer, config.template)
        self._group = 1 if alone else config.clip_frames

    def __bool__(self) -> bool:
        """Whether there are labels."""
        return self._ids is not None

    def openings(self, seconds: Tensor, first: int = 0) -> list[list[int]]:
        """Token ids in front of the vision tokens of each label; [] without labels.

        Args:
            seconds: (frames,) when each is shown.
            first: frames in front of them, in whole clips.
        """
        if self._ids is None:
            return []
        return self._ids.openings(seconds.tolist(), self._group, first)


def runs_of(tokens: Tensor, openings: Sequence[Sequence[int]]) -> list[Tensor]:
    """The vision tokens (n, d_model) of each label, of tokens (frames, n, d_model).

    A label stands for a whole clip, with the copies of the last frame that fill it.
    """
    rows = tokens.flatten(0, 1)
    return list(rows.split(len(rows) // len(openings)))


def push_frames(
    prefix: Prefix,
    embeddings: torch.nn.Module,
    part: Encoded,
    openings: Sequence[list[int]],
) -> None:
    """Read encoded frames, each behind its label.

    Args:
        prefix: reads them.
        embeddings: the LLM's table.
        part: the frames.
        openings: of their labels; [] where the model has none.
    """
    if not openings:
        prefix.push(part.tokens.flatten(0, 1)[None], vision=True)
        return
    # one copy to the device for all labels: each would be a host sync
    ids = torch.tensor([[*chain(*openings)]], device=part.tokens.device)
    texts = embeddings(ids).split([len(opening) for opening in openings], dim=1)
    for text, run in zip(texts, runs_of(part.tokens, openings)):
        prefix.push(text, vision=False, label=True)
        prefix.push(run[None], vision=True)
