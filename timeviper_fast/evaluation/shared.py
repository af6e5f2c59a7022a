"""Several questions about one video: the layers below the asking stage read it once.

The asking stage is the first that selects by attention, so the tokens it keeps depend on the
question. The prompt's beginning and the vision tokens precede the question and never see it, so
their states below that stage are the same for all questions. A uniform stage with transfer also
adds the content of its dropped tokens to each question's text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from timeviper_fast.config import CompressionStage
from timeviper_fast.inference.generate import Prefill
from timeviper_fast.inference.plan import prompt_lengths
from timeviper_fast.layout import Segment
from timeviper_fast.model.cache import AttentionState, HybridCache
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.model.transv import StageRecord, TransV
from tvkernels import dropped_indices

__all__ = ["SharedVideo", "asking_stage"]


def asking_stage(stages: Sequence[CompressionStage]) -> int:
    """Index of the first stage that selects by attention; the number of stages if none does."""
    return next((i for i, stage in enumerate(stages) if stage.select == "attention"), len(stages))


class SharedVideo:
    """A video that has been read up to the asking stage.

    Args:
        model: its stages must not change while questions are asked.
        before: prompt ids in front of the vision tokens.
        visual: (frames, n, d_model), from `encode`.
        room: most tokens of a question and its answer after the vision tokens.
        chunk: tokens per pass through the layers; None reads all at once.

    Raises:
        ValueError: vision and `room` do not fit the model's window.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: TimeViperNetwork,
        before: Sequence[int],
        visual: Tensor,
        room: int,
        chunk: int | None = 8192,
    ) -> None:
        self._model, self._room, self._chunk = model, room, chunk
        backbone = model.backbone
        self._asking = asking_stage(backbone.stages)
        hidden, segment = model.embed(self._ids(before), visual, self._ids([]))
        whole = replace(segment, length=segment.length + room)
        self._lengths = prompt_lengths(backbone.config, backbone.stages, whole, 0)
        self._cache = HybridCache(
            backbone.config, self._lengths, device=hidden.device, dtype=hidden.dtype
        )
        self._segment, self._dropped, self._records = segment, {}, []
        run = backbone.run
        passage = run(hidden, (segment,), cache=self._cache, chunk=chunk, stop_stage=0)
        for number in range(self._asking):
            hidden, segment = passage.hidden, passage.segments[0]
            passage = run(
                hidden,
                (segment,),
                cache=self._cache,
                chunk=chunk,
                start_stage=number,
                stop_stage=number + 1,
            )
            for (record,) in passage.records:
                self._records.append(record)
                self._remember(number, hidden, segment, record)
        self._hidden, self._left = passage.hidden, passage.segments[0]

    _records: list[StageRecord]
    _dropped: dict[int, Tensor]

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], dtype=torch.long, device=self._model.device)

    def _remember(self, number: int, hidden: Tensor, segment: Segment, record: StageRecord) -> None:
        """Keep the tokens that a stage with transfer dropped: each question's text gets them."""
        if self._model.backbone.stages[number].transfer:
            dropped = dropped_indices(record.kept, record.tokens_before)
            self._dropped[number] = hidden[:, segment.positions(dropped)[0]]

    @torch.no_grad()
    def read(self, after: Sequence[int]) -> Prefill:
        """Read a question's ids after the vision tokens; `decode` continues from the result.

        Questions share the key and value buffers, so generate the answer before the next question
        is read.
        """
        backbone = self._model.backbone
        cache = _fork(self._cache)
        hidden = backbone.embeddings(self._ids(after))
        for number in range(-1, self._asking):
            dropped = self._dropped.get(number)
            if dropped is not None and dropped.shape[1]:
                stage = backbone.transv[number]
                assert isinstance(stage, TransV)
                hidden = stage.tell(hidden, dropped)
            start = None if number < 0 else number
            # the question's text has no vision tokens: run the stage's layers without selection
            passage = backbone.run(
                hidden, cache=cache, chunk=self._chunk, start_stage=start, stop_stage=number + 1
            )
            hidden = passage.hidden
        records = [*self._records]
        if self._asking < len(backbone.stages):
            joined = torch.cat([self._hidden, hidden], dim=1)
            segment = replace(self._left, length=joined.shape[1])
            passage = backbone.run(
                joined, (segment,), cache=cache, chunk=self._chunk, start_stage=self._asking
            )
            hidden = passage.hidden
            records += [record for (record,) in passage.records]
        logits = backbone.logits(hidden[:, -1:])[:, 0]
        missing = self._room - len(after)
        lengths = [length - missing for length in self._lengths]
        whole = replace(self._segment, length=self._segment.length + len(after))
        return Prefill(cache, logits, records, lengths, whole)


def _fork(cache: HybridCache) -> HybridCache:
    """Copy the Mamba-2 states and share the key and value buffers, with a separate length.

    Each fork overwrites what the last one wrote after the shared tokens.
    """
    fork = copy.copy(cache)
    fork.layers = [
        copy.copy(state) if isinstance(state, AttentionState) else copy.deepcopy(state)
        for state in cache.layers
    ]
    return fork
