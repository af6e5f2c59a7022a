"""A question about a video with all of its options, checked before a model is loaded.

Importing this imports no torch, so that `timeviper-fast ask --help` shows the defaults at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from timeviper_fast.errors import BOOL, expect, expect_function, fail, is_integer, is_number

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from timeviper_fast.config import TimeViperConfig
    from timeviper_fast.stages import Stages
    from timeviper_fast.text.messages import Message
    from timeviper_fast.text.prompt import Prompt
    from timeviper_fast.video.sampling import Policy
    from timeviper_fast.video.times import Time

__all__ = [
    "OnText",
    "Opening",
    "Question",
    "Request",
    "Sampling",
    "check_sampling",
    "is_list_of_questions",
    "listeners",
    "question_prompt",
    "sampling_of",
]

# gets the pieces of an answer while it is made
OnText = Callable[[str], None]

# where the vision tokens stand behind a lead; no text that people write holds it
_PLACE = "\ue000"


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 is greedy; else logits are divided by it.
        top_k: only the k most likely tokens may be drawn; 0 allows all.
        top_p: only the smallest set of tokens with at least this probability may be drawn.
        repetition_penalty: the logit of a token that the answer already holds is divided by this if
            it is above 0, else multiplied, before all of the above; so it changes greedy draws too.
            The prompt's tokens do not count. 1 changes nothing; None is the model's own.
        seed: makes a draw repeatable; None draws anew each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and self.temperature >= 0):
            fail("Sampling", "temperature", "be 0 or more", self.temperature)
        if not (is_integer(self.top_k) and self.top_k >= 0):
            fail("Sampling", "top_k", "be 0 (off) or more", self.top_k)
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            fail("Sampling", "top_p", "lie in (0, 1]", self.top_p)
        penalty = self.repetition_penalty
        if penalty is not None and not (is_number(penalty) and penalty > 0):
            fail("Sampling", "repetition_penalty", "be above 0", penalty)
        if self.seed is not None and not (is_integer(self.seed) and abs(self.seed) < 2**63):
            fail("Sampling", "seed", "be an int of 64 bits", self.seed)

    def generator(self, device: torch.device) -> torch.Generator:
        """The random source of one request on `device`."""
        import torch

        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def check_sampling(sampling: Sampling | None) -> None:
    """Raise an ArgumentError unless it is a Sampling or None."""
    if not (sampling is None or isinstance(sampling, Sampling)):
        fail("generate", "sampling", "be a Sampling or None", sampling)


def sampling_of(config: TimeViperConfig, sampling: Sampling | None = None) -> Sampling:
    """`sampling` (greedy when None) with the model's own repetition penalty, unless it has one."""
    sampling = sampling or Sampling()
    if sampling.repetition_penalty is not None:
        return sampling
    return replace(sampling, repetition_penalty=config.repetition_penalty)


@dataclass(frozen=True)
class Question:
    """A question, and how to answer it, checked when it is made.

    The options are those of `TimeViper.ask`, which documents them; their defaults stand here. Where
    `mention_duration` is None, the model decides.

    Raises:
        ValueError: a value breaks its rule.
    """

    question: str | Sequence[Message]
    max_new_tokens: int = 256
    sampling: Sampling | None = None
    answer_prefix: str = ""
    mention_duration: bool | None = None
    think: bool | None = None

    def __post_init__(self) -> None:
        from timeviper_fast.text.prompt import conversation

        conversation(self.question, self.answer_prefix, open_answers=True)
        check_sampling(self.sampling)
        if self.mention_duration is not None:
            expect("ask", self, BOOL, "mention_duration")
        if self.think is not None:
            expect("ask", self, BOOL, "think")
        _expect_positive("max_new_tokens", self.max_new_tokens, "tokens")

    def mentions(self, config: TimeViperConfig, is_image: bool) -> bool:
        """Whether the prompt says how long the video is; an image has no duration."""
        mention = self.mention_duration
        return not is_image and (config.mention_duration if mention is None else mention)


@dataclass(frozen=True)
class Opening:
    """How a video is read, checked when it is made; the options are those of `TimeViper.open`.

    Where `policy` is None, the model decides: see `of_model`. Where `chunk` or `frame_batch` is
    None, the memory does.

    Raises:
        ValueError: a value breaks its rule.
    """

    policy: str | Policy | None = None
    start: Time | None = None
    end: Time | None = None
    lead: str = ""
    frame_batch: int | None = None
    chunk: int | None = None
    on_error: str = "raise"
    stages: Stages | None = None
    tiles: bool = False

    def __post_init__(self) -> None:
        from timeviper_fast.video.sampling import parse_policy
        from timeviper_fast.video.times import parse_span

        if self.policy is not None:
            parse_policy(self.policy)
        parse_span(self.start, self.end)
        expect("ask", self, BOOL, "tiles")
        if not isinstance(self.lead, str):
            fail("ask", "lead", "be a text", self.lead)
        if self.chunk is not None:
            _expect_positive("chunk", self.chunk, "tokens")
        if self.frame_batch is not None:
            _expect_positive("frame_batch", self.frame_batch, "frames")
        if self.on_error not in ("raise", "use"):
            fail("ask", "on_error", "be one of raise, use", self.on_error)

    def of_model(self, config: TimeViperConfig, is_image: bool) -> Opening:
        """The opening with this model's defaults; an image is one frame."""
        if self.tiles and not is_image:
            fail("ask", "tiles", "be left out but for a single image", self.tiles)
        return replace(self, policy="uniform:1" if is_image else self.policy or config.policy)


@dataclass(frozen=True)
class Request(Opening, Question):
    """A question about a video that is read for it alone."""

    def __post_init__(self) -> None:
        Question.__post_init__(self)
        Opening.__post_init__(self)


def question_prompt(
    config: TimeViperConfig,
    tokenizer: PreTrainedTokenizerBase,
    opening: Opening,
    question: Question,
    frames: int,
    duration: float,
    is_image: bool,
) -> Prompt:
    """The prompt of a question about a video of so many frames and seconds, without the labels that
    its frames may have."""
    from timeviper_fast.text.prompt import build_prompt, conversation, vision_preface

    asked = question.question
    mention = question.mentions(config, is_image)
    placeholder = None
    if opening.lead:
        messages = [dict(message) for message in conversation(asked, open_answers=True)]
        first = messages[messages[0]["role"] == "system"]
        if _PLACE in first["content"] or _PLACE in opening.lead:
            fail("ask", "question", "hold no character U+E000 behind a lead", first)
        first["content"] = f"{opening.lead}{_PLACE}{first['content']}"
        asked, placeholder = messages, _PLACE
    return build_prompt(
        tokenizer,
        asked,
        template=config.template,
        preface=vision_preface(config.template, duration if mention else None, frames),
        answer_prefix=question.answer_prefix,
        placeholder=placeholder,
        video=not is_image,
        think=question.think,
    )


def is_list_of_questions(question: str | Sequence[Any]) -> bool:
    """Whether it is a list of questions; a list of messages is one question."""
    if isinstance(question, str) or not isinstance(question, (list, tuple)):
        return False
    return bool(question) and isinstance(question[0], (str, list, tuple))


def listeners(on_text: Any, questions: int | None) -> list[OnText | None]:
    """What gets the pieces of each answer, of a list of `questions` or of one (None).

    Raises:
        ValueError: neither a function nor None for one question, nor a list of these for a list.
    """
    if questions is None or on_text is None:
        expect_function("ask", on_text=on_text)
        return [on_text] * (questions or 1)
    if not isinstance(on_text, (list, tuple)) or len(on_text) != questions:
        rule = f"be a list with a function or None for each of the {questions} questions"
        fail("ask", "on_text", rule, on_text)
    for number, one in enumerate(on_text):
        expect_function("ask", **{f"on_text[{number}]": one})
    return [*on_text]


def _expect_positive(name: str, value: int, unit: str) -> None:
    if not is_integer(value) or value < 1:
        fail("ask", name, f"be a positive number of {unit}", value)
