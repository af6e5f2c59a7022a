"""A video that was read once, and is asked as often as one likes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timeviper_fast.config import CompressionStage
from timeviper_fast.errors import expect_function, fail
from timeviper_fast.inference.answer import (
    Answer,
    check_tokenizer,
    nothing_left,
    speak,
    stop_ids_of,
)
from timeviper_fast.inference.chat import Chat
from timeviper_fast.inference.ended import Ended, Prefill
from timeviper_fast.inference.evidence import Evidence
from timeviper_fast.inference.footage import Footage
from timeviper_fast.inference.generate import counted
from timeviper_fast.inference.request import (
    OnText,
    Opening,
    Question,
    Sampling,
    is_list_of_questions,
    listeners,
    question_prompt,
    sampling_of,
)
from timeviper_fast.inference.room import explained, fitting_batch
from timeviper_fast.inference.session_file import Contents, load_contents, save_contents
from timeviper_fast.inference.thinking import Thought
from timeviper_fast.model.fingerprint import state_of_weights
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.stops import Stop, StopWatch
from timeviper_fast.text.prompt import Prompt
from timeviper_fast.video import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NEUTRAL", "Session"]

# asks for nothing in particular: what draws attention here draws it whatever is asked
NEUTRAL = "Describe the video."
# questions that are read and answered together; each holds a fork of the video's states
BATCH = 8


class Session:
    """A video that was read below the first stage that a question can change.

    Every question runs its own words through the layers below that stage, and the kept tokens
    through the rest. Nothing that a question does changes the session, so that questions may be
    asked in any order, again, and after a question that failed. An answer equals that of
    `TimeViper.ask` bit for bit at the same `chunk` and `frame_batch`; that of several questions
    asked together may differ from it by rounding behind the first token.

    Attributes:
        stops: time and size of the stops on the way to the session.
        footage: what is known of the video.
        opening: how it was read.
        before: token ids in front of the video.
        exact: as in `Answer`.
    """

    def __init__(
        self,
        model: TimeViperNetwork,
        tokenizer: PreTrainedTokenizerBase,
        ended: Ended,
        *,
        before: Sequence[int],
        footage: Footage,
        opening: Opening,
        stages: tuple[CompressionStage, ...],
        stops: tuple[Stop, ...] = (),
        exact: bool = True,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        # the model's stages may change, and other sessions have others
        self._network = model.with_stages(stages)
        self._weights = state_of_weights(self._network)
        self._ended = replace(ended, backbone=self._network.backbone)
        self.before, self.footage, self.opening = tuple(before), footage, opening
        self._control: Evidence | None = None
        self._stages, self.stops, self.exact = stages, stops, exact

    def ask(
        self,
        question: str | Sequence[Any],
        *,
        max_new_tokens: int = Question.max_new_tokens,
        sampling: Sampling | None = Question.sampling,
        answer_prefix: str = Question.answer_prefix,
        mention_duration: bool | None = Question.mention_duration,
        think: bool | None = Question.think,
        on_text: OnText | Sequence[OnText | None] | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Answer one question, or a list of them.

        Args:
            question: text or a conversation, as `TimeViper.ask` takes it: gives an `Answer`. Or a
                list of these: they are read one by one and answered together, eight at a time, and
                give a list of answers.
            max_new_tokens, sampling, answer_prefix, mention_duration, think, progress: as in
                `TimeViper.ask`, for each of the questions. With a seed, each answer is drawn as if
                its question had been asked alone.
            on_text: as in `TimeViper.ask`; for a list of questions, a list with a function or None
                for each.

        Raises:
            ValueError: a bad argument, or a question that does not fit the model's window.
        """
        expect_function("ask", progress=progress)
        many = is_list_of_questions(question)
        heard = listeners(on_text, len(question) if many else None)
        given = (max_new_tokens, sampling, answer_prefix, mention_duration, think)
        questions = [Question(one, *given) for one in (question if many else [question])]
        prompts = [self.prompt(question) for question in questions]
        answers: list[Answer] = []
        batch = self._batch(prompts, max_new_tokens)
        for start in range(0, len(questions), batch):
            together = prompts[start : start + batch]
            watch = StopWatch(self.model.device)
            rows = heard[start : start + batch]
            answers += self.answer(together, questions[0], watch, on_text=rows, progress=progress)
        return answers if many else answers[0]

    @torch.no_grad()
    def control(self) -> Evidence | None:
        """The evidence of a neutral question, "Describe the video.", read once and kept.

        `answer.evidence.against(session.control())` tells what a question looked at from what draws
        attention whatever is asked. None if no stage selects by attention.
        """
        if self._control is None:
            read = self.read(Question(NEUTRAL, max_new_tokens=1))
            self._control = self.footage.evidence(read, 0)
        return self._control

    def read(self, question: Question) -> Prefill:
        """A question that was read: the states that its answer goes on from, and first logits."""
        text = self._embedded(self.prompt(question).after)
        return self._ended.read([text], max_new_tokens=question.max_new_tokens)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write everything but the model to one file, completely or not at all.

        The file belongs to the weights, the dtype and the tokenizer of the model as they are now.

        Args:
            path: of the file, by custom with the suffix .session.
            overwrite: whether it replaces an existing file.

        Raises:
            ValueError: a path that must not be replaced.
            OSError: it cannot be written, or the disk is full; an old file is as before.
        """
        self._check_model()
        parts = (self._ended, self.before, self.footage, self.opening)
        contents = Contents(*parts, self._stages, self.exact)
        save_contents(path, self.model, self.tokenizer, contents, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        model: TimeViperNetwork,
        tokenizer: PreTrainedTokenizerBase | None,
        path: str | os.PathLike[str],
    ) -> Session:
        """The session of a file; `TimeViper.load_session` has the details."""
        if tokenizer is None:
            fail("load_session", "model", "have a tokenizer", None, "set model.tokenizer")
        return cls(model, tokenizer, **vars(load_contents(path, model, tokenizer)))

    def to(self, device: torch.device | str) -> Session:
        """Keep the session in host memory ("cpu"), or on its model's device; returns itself.

        In host memory, which is page-locked where the model is on a GPU, it takes none of the GPU
        between questions. Each question copies it there when it begins, layer by layer, and drops
        the copy at its end: at a question's peak nothing is saved but rows and dropped keys, which
        come one stage at a time. Answers are the same, to the bit.

        Raises:
            ValueError: another device.
        """
        places = {str(self.model.device): self.model.device, "cpu": torch.device("cpu")}
        if str(device) == self.model.device.type:
            device = self.model.device
        if str(device) not in places:
            fail("to", "device", f"be one of {', '.join(places)}", str(device))
        self._ended = self._ended.on(places[str(device)])
        return self

    @property
    def stages(self) -> tuple[CompressionStage, ...]:
        """Where the LLM drops vision tokens of this video."""
        return self._stages

    @property
    def ended(self) -> Ended:
        """The video as it was read, for the model as it was then; ValueError if it has changed."""
        self._check_model()
        return self._ended

    def chat(self) -> Chat:
        """A conversation about the video: each question knows what was said before."""
        return Chat(self)

    @torch.no_grad()
    def answer(
        self,
        prompts: Sequence[Prompt],
        options: Question,
        watch: StopWatch,
        *,
        on_text: Sequence[OnText | None] = (),
        progress: Progress | None = None,
        ended: Ended | None = None,
        known: int = 0,
    ) -> list[Answer]:
        """Read questions into one batch and answer them together.

        Args:
            prompts: theirs, by `prompt`.
            options: a question with the options of all.
            watch: gets the times and sizes of this.
            on_text: for each prompt, what gets the pieces of its answer; () for none.
            ended: the video with the first `known` token ids of the question behind it already.
        """
        ended = ended or self._ended
        frames, new = len(self.footage.seconds), options.max_new_tokens
        with explained(self._network, "answering", frames, len(prompts), new):
            with watch.at("prompt") as stop:
                texts = [self._embedded(prompt.after[known:]) for prompt in prompts]
                longest = max(len(prompt.after) for prompt in prompts)
                tokens = self._ended.segment.length + longest
                stop.shape = f"1 x {tokens} x {self.model.config.backbone.hidden_size}"
                stop.tokens = str(tokens)
            with watch.at("prefill") as stop:
                read = self._read(ended, texts, new, watch, progress)
                stop.shape = f"cache {read.cache.nbytes / 2**20:.1f} MiB"
                stop.tokens = f"{read.lengths[0]} -> {read.lengths[-1]}"
            with watch.at("generate") as stop:
                stop_ids = stop_ids_of(self.tokenizer, self.model.config)
                spoken = speak(
                    ended.backbone,
                    self.tokenizer,
                    read,
                    max_new_tokens=new,
                    stop_ids=stop_ids,
                    sampling=sampling_of(self.model.config, options.sampling),
                    on_text=on_text,
                    thinks=[prompt.thinks for prompt in prompts],
                    progress=progress,
                )
                count = sum(len(ids) for ids, _ in spoken)
                stop.shape, stop.tokens = f"{count} tokens", str(count)
        stops = tuple(watch.rows())
        return [
            self._answer(*said, prompt.thinks, read, row, stops, stop_ids)
            for row, (said, prompt) in enumerate(zip(spoken, prompts))
        ]

    def prompt(self, question: Question) -> Prompt:
        """A question's prompt, checked against the video's.

        Raises:
            ValueError: its text in front of the video is another than the session's, or the
                tokenizer belongs to another model.
        """
        footage = self.footage
        prompt = question_prompt(
            self.model.config,
            self.tokenizer,
            self.opening,
            question,
            len(footage.seconds),
            footage.duration,
            footage.is_image,
        )
        if tuple(prompt.before) != self.before:
            here, there = (self.tokenizer.decode([*ids]) for ids in (prompt.before, self.before))
            rule = f"have the text in front of the video that it was read with, {there!r}"
            remedy = "open(video, lead=...) reads it behind other words"
            fail("ask", "question", rule, repr(here), remedy)
        check_tokenizer(self.model.config, prompt, stop_ids_of(self.tokenizer, self.model.config))
        return prompt

    def _batch(self, prompts: Sequence[Prompt], max_new_tokens: int) -> int:
        """How many questions are answered together."""
        longest = max(len(prompt.after) for prompt in prompts)
        return fitting_batch(
            self._network,
            len(self.footage.seconds),
            self._ended.segment.text,
            longest,
            max_new_tokens,
            held=self._ended.nbytes_on(self.model.device),
            chunk=self.opening.chunk,
            most=min(BATCH, len(prompts)),
        )

    def _check_model(self) -> None:
        """Refuse a model that was moved, cast or trained since the video was read."""
        now = state_of_weights(self._network)
        if now != self._weights:
            rule = f"have the weights with which the video was read, {self._weights}"
            fail("session", "model", rule, now, "open the video again")

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        self._check_model()
        tokens = torch.tensor([list(ids)], dtype=torch.long, device=self.model.device)
        return self.model.backbone.embeddings(tokens)

    def _read(
        self,
        ended: Ended,
        texts: list[Tensor],
        max_new_tokens: int,
        watch: StopWatch,
        progress: Progress | None,
    ) -> Prefill:
        on_pass = None
        if progress is not None:
            works = zip(*(ended.work(text.shape[1]) for text in texts))
            on_pass = counted(progress, [sum(work) for work in works], self.model.device)
        return ended.read(texts, max_new_tokens=max_new_tokens, watch=watch, on_pass=on_pass)

    def _answer(
        self,
        ids: list[int],
        text: str,
        thinks: bool,
        read: Prefill,
        row: int,
        stops: tuple[Stop, ...],
        stop_ids: set[int],
    ) -> Answer:
        footage = self.footage
        seconds = footage.token_seconds(read.segment.vision_present)
        kept = read.kept[row].cpu()
        thought = Thought.of(self.tokenizer, ids) if thinks else Thought(self.tokenizer, False)
        notes = (*footage.all_notes, *nothing_left(len(footage.seconds), len(kept)))
        return Answer(
            text=text,
            token_ids=tuple(ids),
            finish="stop" if ids[-1] in stop_ids else "length",
            frame_seconds=tuple(footage.seconds.tolist()),
            kept_seconds=tuple(seconds[kept].tolist()),
            stages=read.stages,
            stops=stops,
            lost_frames=footage.lost_frames,
            notes=(*notes, *thought.notes),
            model_note=self.model.note,
            evidence=footage.evidence(read, row),
            exact=self.exact,
            thinking=thought.thinking,
        )
