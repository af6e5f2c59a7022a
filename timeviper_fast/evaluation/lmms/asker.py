"""The questions of one video, answered with one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch

from timeviper_fast.errors import ArgumentError
from timeviper_fast.evaluation.lmms.query import OWNER, Options, Query
from timeviper_fast.evaluation.lmms.told import Said
from timeviper_fast.evaluation.needle import weights_digest
from timeviper_fast.inference.answer import check_tokenizer, speak, stop_ids_of
from timeviper_fast.inference.ended import Prefill
from timeviper_fast.inference.generate import prefill
from timeviper_fast.inference.likelihood import likelihood
from timeviper_fast.inference.request import Question, sampling_of
from timeviper_fast.inference.room import FAULTS
from timeviper_fast.inference.session import Session
from timeviper_fast.text.prompt import build_prompt
from timeviper_fast.timeviper import TimeViper

__all__ = ["Asker", "Load", "Numbered"]

# a query with its place among all
Numbered = tuple[int, Query]


@dataclass(frozen=True)
class Load:
    """How a model is loaded and asked, as the adapter was told.

    Attributes:
        pretrained, dtype, stages: as in `TimeViper.from_pretrained`.
        policy: which frames are looked at, as in `TimeViper.ask`.
        batch: questions of a video that are answered together.
    """

    pretrained: str
    dtype: str | None
    stages: str | None
    policy: str | None
    batch: int

    def asker(self, device: str | None) -> Asker:
        """Load the model onto a device."""
        model = TimeViper.from_pretrained(
            self.pretrained, device=device, dtype=self.dtype, stages=self.stages
        )
        if model.tokenizer is None:
            raise ArgumentError(OWNER, "pretrained", "have a tokenizer", self.pretrained)
        return Asker(model, self.policy, self.batch)


class Asker:
    """Asks one model."""

    def __init__(self, model: TimeViper, policy: str | None, batch: int) -> None:
        self.model, self._policy, self._batch = model, policy, batch

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on, as plain data."""
        stages = [asdict(stage) for stage in self.model.backbone.stages]
        dtype = str(self.model.dtype).removeprefix("torch.")
        model = weights_digest(self.model)
        return {"model": model, "stages": stages, "dtype": dtype, "sample": self._policy}

    def answers(self, group: Sequence[Numbered]) -> Iterator[tuple[int, Said]]:
        """Answer the queries about one video. A video that cannot be read is an error of each."""
        visual, session = group[0][1].visual, None
        try:
            if visual is not None:
                session = self.model.open(visual, policy=self._policy)
        except FAULTS as error:
            yield from ((place, Said(error=str(error))) for place, _ in group)
            return
        # only equal options are answered together
        for _, alike in groupby(group, key=_how):
            items = list(alike)
            for start in range(0, len(items), self._batch):
                yield from self._said(session, items[start : start + self._batch])

    def _said(
        self, session: Session | None, items: Sequence[Numbered]
    ) -> Iterator[tuple[int, Said]]:
        """Answer queries with equal options together, or one by one if they are refused."""
        try:
            queries = [query for _, query in items]
            if queries[0].continuation is None:
                said = self._spoken(session, queries)
            else:
                said = [self._scored(session, query) for query in queries]
        except FAULTS as error:
            if len(items) == 1:
                yield items[0][0], Said(error=str(error))
                return
            for item in items:
                yield from self._said(session, [item])
            return
        yield from zip((place for place, _ in items), said)

    def _spoken(self, session: Session | None, queries: Sequence[Query]) -> list[Said]:
        options = queries[0].options
        limit, sampling = options.max_new_tokens, options.sampling
        if session is None:
            return [self._without_video(query) for query in queries]
        texts = [query.text for query in queries]
        answers = session.ask(texts, max_new_tokens=limit, sampling=sampling)
        return [Said(options.cut(answer.text), len(answer.token_ids)) for answer in answers]

    @torch.no_grad()
    def _without_video(self, query: Query) -> Said:
        model, limit = self.model, query.options.max_new_tokens
        assert model.tokenizer is not None
        stops = stop_ids_of(model.tokenizer, model.config)
        sampling = sampling_of(model.config, query.options.sampling)
        read = self._read(query.text, limit)
        options = {"max_new_tokens": limit, "stop_ids": stops, "sampling": sampling}
        [(ids, text)] = speak(model.backbone, model.tokenizer, read, **options)  # type: ignore[arg-type]
        return Said(query.options.cut(text), len(ids))

    def _scored(self, session: Session | None, query: Query) -> Said:
        assert self.model.tokenizer is not None
        assert query.continuation is not None
        ids = self.model.tokenizer(query.continuation, add_special_tokens=False)["input_ids"]
        room = max(len(ids), 1)
        if session is None:
            read = self._read(query.text, room)
        else:
            read = session.read(Question(query.text, room))
        found = likelihood(self.model.backbone, read, ids)
        return Said(loss=-found.log, greedy=found.greedy)

    @torch.no_grad()
    def _read(self, text: str, room: int) -> Prefill:
        """A prompt without vision tokens."""
        model = self.model
        assert model.tokenizer is not None
        prompt = build_prompt(model.tokenizer, text, template=model.config.template, vision=False)
        check_tokenizer(model.config, prompt, stop_ids_of(model.tokenizer, model.config))
        ids = torch.tensor([[*prompt.before, *prompt.after]], device=model.device)
        embeddings, segment = model.embed(ids, None, ids[:, :0])
        return prefill(model.backbone, embeddings, segment, max_new_tokens=room)


def _how(item: Numbered) -> tuple[Options, bool]:
    """How a query is answered."""
    return item[1].options, item[1].continuation is None
