"""A question about a video with all of its options, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from timeviper_fast.errors import fail, is_integer
from timeviper_fast.inference.generate import Sampling, check_sampling
from timeviper_fast.text.prompt import Message, conversation
from timeviper_fast.video.sampling import Policy, parse_policy

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """A question about a video, and how to answer it, checked when it is made.

    The options are those of `TimeViper.ask`, which documents them; their defaults stand here.

    Raises:
        ValueError: a value breaks its rule.
    """

    question: str | Sequence[Message]
    policy: str | Policy = "fps:1"
    max_new_tokens: int = 256
    sampling: Sampling | None = None
    answer_prefix: str = ""
    mention_duration: bool = False
    frame_batch: int | None = None
    chunk: int | None = 8192
    on_error: str = "raise"

    def __post_init__(self) -> None:
        conversation(self.question, self.answer_prefix)
        parse_policy(self.policy)
        check_sampling(self.sampling)
        _expect_positive("max_new_tokens", self.max_new_tokens, "tokens")
        if self.chunk is not None:
            _expect_positive("chunk", self.chunk, "tokens")
        if self.frame_batch is not None:
            _expect_positive("frame_batch", self.frame_batch, "frames")
        if self.on_error not in ("raise", "use"):
            fail("ask", "on_error", "be one of raise, use", self.on_error)


def _expect_positive(name: str, value: int, unit: str) -> None:
    if not is_integer(value) or value < 1:
        fail("ask", name, f"be a positive number of {unit}", value)
