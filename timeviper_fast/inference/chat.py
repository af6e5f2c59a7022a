"""A conversation about a video that was read."""

from __future__ import annotations

from typing import Any

import torch

from timeviper_fast.errors import expect_function
from timeviper_fast.inference.answer import Answer
from timeviper_fast.inference.ended import Ended
from timeviper_fast.inference.request import OnText, Question, Sampling
from timeviper_fast.inference.room import explained
from timeviper_fast.stops import StopWatch
from timeviper_fast.text.messages import Message
from timeviper_fast.video import Progress

__all__ = ["Chat"]


class Chat:
    """A conversation about a session's video.

    A turn equals asking the whole conversation at once. It starts from the state behind the last
    question, and reads the answer again as a part of the prompt: what was decoded never passed a
    compression stage, so going on from there would be another answer.

    Args:
        session: a `Session`; its module imports this one.

    Attributes:
        messages: what was said, as {"role", "content"}.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.messages: list[Message] = []
        self._ids: list[int] = []
        self._ended: Ended | None = None

    @torch.no_grad()
    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = Question.max_new_tokens,
        sampling: Sampling | None = Question.sampling,
        think: bool | None = Question.think,
        on_text: OnText | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """The answer to the next question. A question that fails leaves the chat as it was.

        Raises:
            ValueError: as `Session.ask`.
        """
        expect_function("ask", on_text=on_text, progress=progress)
        session = self._session
        messages = [*self.messages, {"role": "user", "content": question}]
        asked = Question(messages, max_new_tokens, sampling, think=think)
        prompt = session.prompt(asked)
        ids = prompt.after
        ended, known = self._ended, len(self._ids)
        # an answer is stripped and tokenised again: compare ids, not texts
        if ended is None or ids[:known] != self._ids or known >= len(ids):
            ended, known = session._ended, 0
        # before anything is read
        ended.lengths(len(ids) - known, max_new_tokens)
        frames = len(session.footage.seconds)
        with explained(session._network, "answering", frames, 1, max_new_tokens):
            ended = ended.after(session._embedded(ids[known:]))
        watch = StopWatch(session.model.device)
        answer: Answer
        [answer] = session.answer(
            [prompt],
            asked,
            watch,
            on_text=[on_text],
            progress=progress,
            ended=ended,
            known=len(ids),
        )
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self._ids, self._ended = ids, ended
        return answer
