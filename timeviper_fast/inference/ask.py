"""From a video and a request to an answer, in eight timed stops.

decode -> resize -> vision -> merge -> project -> prompt -> prefill -> generate

The video is opened as a session, which answers the one question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from timeviper_fast.errors import expect_function
from timeviper_fast.inference.answer import Answer
from timeviper_fast.inference.open import open_session
from timeviper_fast.inference.request import Question, Request
from timeviper_fast.inference.session import Session
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stops import StopWatch
from timeviper_fast.video import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["answer", "answer_from"]


def answer(
    model: TimeViperNetwork,
    tokenizer: PreTrainedTokenizerBase | None,
    video: Any,
    request: Request,
    *,
    on_text: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    control: bool = False,
) -> Answer:
    """Answer a request about a video; `TimeViper.ask` says what each argument may be.

    Args:
        control: whether the evidence is compared with that of a neutral question, which is read
            for it.

    Raises:
        ValueError: no tokenizer, a video that cannot be read, or one too long for the model.
    """
    expect_function("ask", on_text=on_text, progress=progress)
    watch = StopWatch(model.device)
    session = open_session(
        model, tokenizer, video, request, watch, first=request, progress=progress
    )
    options = {"on_text": on_text, "progress": progress, "control": control}
    return answer_from(session, request, watch=watch, **options)  # type: ignore[arg-type]


def answer_from(
    session: Session,
    question: Question,
    *,
    watch: StopWatch | None = None,
    on_text: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    control: bool = False,
) -> Answer:
    """Answer a question about a video that was read.

    Args:
        watch: gets the times and sizes of this.
        on_text, progress, control: as in `answer`.

    Raises:
        ValueError: as `Session.ask`.
    """
    watch = watch or StopWatch(session.model.device)
    with watch.at("prompt"):
        prompts = [session.prompt(question)]
    [answered] = session.answer(prompts, question, watch, on_text=[on_text], progress=progress)
    if control and answered.evidence is not None:
        neutral = session.control()
        assert neutral is not None
        answered = replace(answered, evidence=answered.evidence.against(neutral))
    return answered
