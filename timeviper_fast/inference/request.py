"""The options of `ask`, checked before a model is loaded or a video is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timeviper_fast.errors import expect_function, fail, is_integer
from timeviper_fast.inference.encode import Progress
from timeviper_fast.inference.generate import Sampling, check_sampling
from timeviper_fast.text.prompt import conversation
from timeviper_fast.video.sampling import Policy, parse_policy

__all__ = ["check_request"]


def check_request(
    question: str | Sequence[dict[str, str]],
    *,
    policy: str | Policy = "fps:1",
    max_new_tokens: int = 256,
    sampling: Sampling | None = None,
    answer_prefix: str = "",
    frame_batch: int | None = None,
    chunk: int | None = 8192,
    on_text: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Raise what `ask` would of these arguments, before a model is loaded or a video read."""
    conversation(question, answer_prefix)
    parse_policy(policy)
    check_sampling(sampling)
    _expect_positive("max_new_tokens", max_new_tokens, "tokens")
    _expect_positive("chunk", chunk, "tokens")
    _expect_positive("frame_batch", frame_batch, "frames")
    expect_function("ask", on_text=on_text, progress=progress)


def _expect_positive(name: str, value: int | None, unit: str) -> None:
    if value is not None and (not is_integer(value) or value < 1):
        fail("ask", name, f"be a positive number of {unit}", value)
