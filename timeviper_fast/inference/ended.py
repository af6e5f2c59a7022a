"""A video that was read whole, and the questions that are read behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from timeviper_fast.errors import fail, is_integer
from timeviper_fast.inference.plan import prompt_lengths
from timeviper_fast.inference.prefix import Prefix, asking_stage
from timeviper_fast.inference.rows import Rows
from timeviper_fast.layout import Segment, VisualSpan, shorten, tokens_before_layer
from timeviper_fast.model.cache import HybridCache, placed
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.transv import StageRecord, TransV
from timeviper_fast.stops import StopWatch

__all__ = ["Ended", "Prefill", "StageCount"]


@dataclass(frozen=True)
class StageCount:
    """Vision tokens before and after the compression stage in front of `layer`."""

    layer: int
    before: int
    after: int


@dataclass
class Prefill:
    """Prompts about one video that have been read, one per row.

    Attributes:
        cache: the rows' states; `decode` continues them in place.
        logits: (rows, vocab) float32, of each prompt's last position.
        records: what each compression stage did, for all rows.
        lengths: tokens of the longest prompt that entered each layer.
        segment: where the vision tokens lay in the prompts.
    """

    cache: HybridCache
    logits: Tensor
    records: list[StageRecord]
    lengths: list[int]
    segment: Segment

    @property
    def stages(self) -> tuple[StageCount, ...]:
        """Vision tokens before and after each compression stage."""
        return tuple(StageCount(r.layer, r.tokens_before, r.tokens_after) for r in self.records)

    @property
    def kept(self) -> Tensor:
        """(rows, n) int64: which of the prompt's vision tokens the last layers still see."""
        kept = torch.arange(self.segment.vision_present, device=self.logits.device)
        kept = kept.expand(len(self.logits), -1)
        for record in self.records:
            kept = kept.gather(1, record.kept)
        return kept


@dataclass(frozen=True)
class Ended:
    """What is left of a video below the asking stage; no question changes it.

    Attributes:
        backbone: the language model that read it.
        chunk: rows per pass through the layers.
        cache: states of the layers below the asking stage.
        rows: those that reached the asking stage; empty without one.
        dropped: by the number of each uniform stage with transfer, the keys and values of what it
            dropped, each (batch, m, nkvheads, headdim).
        records: what the uniform stages did.
        segment: length and vision of what was read, as counts.
        text: text behind the video that was read too, at the asking stage: (batch, t, d_model). A
            conversation's turns are kept so.
        last: the last row behind all layers, (batch, 1, d_model); of no use with an asking stage.
    """

    backbone: HybridBackbone
    chunk: int | None
    cache: HybridCache
    rows: tuple[Rows, ...]
    dropped: dict[int, tuple[Tensor, Tensor]]
    records: tuple[StageRecord, ...]
    segment: Segment
    text: Tensor | None = None
    last: Tensor | None = None

    @classmethod
    def of(cls, prefix: Prefix) -> Ended:
        """Of a prefix that is finished."""
        dropped = {
            number: stage.dropped.everything
            for number, stage in enumerate(prefix.stages)
            if stage.dropped is not None
        }
        records = tuple(
            stage.record(prefix.came(number), prefix.batch, prefix.device)
            for number, stage in enumerate(prefix.stages)
        )
        if not prefix.vision_tokens:
            records = ()
        rows = tuple(part for part in prefix.rows.parts if len(part))
        return cls(
            prefix.backbone,
            prefix.chunk,
            prefix.cache,
            rows,
            dropped,
            records,
            prefix.segment,
            last=prefix.last,
        )

    def nbytes_on(self, device: torch.device) -> int:
        """Bytes of what it holds on a device."""
        tensors = [part.hidden for part in self.rows]
        tensors += [x for pair in self.dropped.values() for x in pair]
        tensors += [] if self.text is None else [self.text]
        states = self.cache.nbytes if torch.device(self.cache.device or "cpu") == device else 0
        return states + sum(x.nbytes for x in tensors if x.device == device)

    def on(self, device: torch.device) -> Ended:
        """The same with its states, rows and dropped keys and values on a device.

        Questions bring them to the backbone's device: the states when they begin, layer by layer,
        the others where a stage reads them.
        """
        rows = tuple(Rows(placed(part.hidden, device), part.source) for part in self.rows)
        dropped = {
            number: (placed(key, device), placed(value, device))
            for number, (key, value) in self.dropped.items()
        }
        return replace(self, cache=self.cache.on(device), rows=rows, dropped=dropped)

    @property
    def _states(self) -> HybridCache:
        """The layers' states on the backbone's device."""
        return self.cache.on(self.backbone.embeddings.weight.device)

    @property
    def asking(self) -> int:
        """Number of the asking stage; the number of stages if there is none."""
        return asking_stage(self.backbone.stages)

    @property
    def asking_layer(self) -> int:
        """The layer that the asking stage stands before; the number of layers without one."""
        stages = self.backbone.stages
        layers = self.backbone.config.num_hidden_layers
        return stages[self.asking].layer if self.asking < len(stages) else layers

    @torch.no_grad()
    def after(self, text: Tensor) -> Ended:
        """The video with `text` (batch, n, d_model) behind it, where a later question goes on."""
        cache = self._states.fork(self.cache.batch, self._rooms(text.shape[1], None))
        text = self._below(cache, text, None)
        if self.text is not None:
            text = torch.cat([self.text, text], dim=1)
        return replace(self, cache=cache, text=text)

    @torch.no_grad()
    def read(
        self,
        texts: Sequence[Tensor],
        *,
        max_new_tokens: int,
        watch: StopWatch | None = None,
        on_pass: Callable[[int], None] | None = None,
    ) -> Prefill:
        """Read questions, each a text (batch, n, d_model) behind the video, into one cache.

        They are read one by one: the first logits of each are those of asking it alone. Of a batch
        of videos there is one question.

        Args:
            texts: one per question; n may be 0, where the prompt ends with the video or with what
                `after` has read.
            max_new_tokens: room for the answers.
            watch: times the compression stages.
            on_pass: called with (tokens times layers) when a block has been queued.

        Raises:
            ValueError: no room for an answer, or a prompt that is empty or does not fit the model's
                window.
        """
        if not (is_integer(max_new_tokens) and max_new_tokens >= 1):
            fail("prefill", "max_new_tokens", "be an integer of 1 or more", max_new_tokens)
        longest = max(text.shape[1] for text in texts)
        lengths = self.lengths(longest, max_new_tokens)
        rooms = self._rooms(longest + max_new_tokens, [n + max_new_tokens for n in lengths])
        cache = self._states.fork(self.cache.batch * len(texts), rooms)
        rows = [cache] if len(texts) == 1 else [cache.row(r) for r in range(len(texts))]
        read = [self._read(row, text, watch, on_pass) for row, text in zip(rows, texts)]
        if len(texts) > 1:
            cache.join(rows)
        logits = torch.cat([one for one, _ in read])
        records = [_together(ones) for ones in zip(*(records for _, records in read))]
        segment = self._whole(longest)
        return Prefill(cache, logits, records, lengths, segment)

    def lengths(self, text: int, max_new_tokens: int) -> list[int]:
        """Prompt tokens that enter each layer, with `text` of them behind what was read.

        Raises:
            ValueError: prompt and answer do not fit the model's window, or nothing is left.
        """
        backbone = self.backbone
        return prompt_lengths(backbone.config, backbone.stages, self._whole(text), max_new_tokens)

    def work(self, text: int) -> list[int]:
        """Rows that a question of `text` tokens sends through each layer."""
        stages = self.backbone.stages
        lengths = tokens_before_layer(
            (self._whole(text),), stages, self.backbone.config.num_hidden_layers
        )
        below = self._rooms(text, lengths)
        return [rows or 0 for rows in below]

    def _whole(self, text: int) -> Segment:
        before = 0 if self.text is None else self.text.shape[1]
        return replace(self.segment, length=self.segment.length + before + text)

    def _rooms(self, below: int, above: Sequence[int] | None) -> list[int | None]:
        """Tokens more for layers below the asking stage, and the capacities of the others."""
        end, layers = self.asking_layer, self.backbone.config.num_hidden_layers
        return [
            below if layer < end else None if above is None else above[layer]
            for layer in range(layers)
        ]

    def _read(
        self,
        cache: HybridCache,
        text: Tensor,
        watch: StopWatch | None,
        on_pass: Callable[[int], None] | None,
    ) -> tuple[Tensor, list[StageRecord]]:
        """The last position's logits (batch, vocab), and what each stage did."""
        if text.shape[1]:
            text = self._below(cache, text, on_pass)
        if self.text is not None:
            text = torch.cat([self.text, text], dim=1)
        hidden = text if text.shape[1] or self.last is None else self.last
        records = [*self.records]
        if self.asking < len(self.backbone.stages):
            hidden, segment, record = self._divide(text, watch)
            passage = self.backbone.run(
                hidden,
                (segment,),
                cache=cache,
                chunk=self.chunk,
                start_stage=self.asking,
                staged=True,
                watch=watch,
                on_pass=on_pass,
            )
            hidden = passage.hidden
            records += [*record, *(record for (record,) in passage.records)]
        return self.backbone.logits(hidden[:, -1:])[:, 0], records

    def _divide(
        self, text: Tensor, watch: StopWatch | None
    ) -> tuple[Tensor, Segment, list[StageRecord]]:
        """The asking stage: the rows that stay and the text, where the vision lies in them, and
        what the stage did; without vision it does nothing."""
        here = [part.hidden.to(text.device, non_blocking=True) for part in self.rows]
        rows = here[0] if len(here) == 1 else torch.cat([text[:, :0], *here], dim=1)
        segment = self._at_the_stage(rows.shape[1] + text.shape[1])
        if not self.segment.vision_tokens:
            return torch.cat([rows, text], dim=1), segment, []
        module, layer = self.backbone.transv[self.asking], self.backbone.layers[self.asking_layer]
        assert isinstance(module, TransV)
        with self.backbone.timed(watch, self.asking) as stop:
            hidden, left, record = module.divide(rows, text, segment, layer.mixer, layer.norm)  # type: ignore[arg-type]
            stop.tokens = f"{record.tokens_before} -> {record.tokens_after}"
        return hidden, left, [record]

    def _below(
        self, cache: HybridCache, text: Tensor, on_pass: Callable[[int], None] | None
    ) -> Tensor:
        """Text through the layers below the asking stage, reading what each stage dropped."""
        for number in range(-1, self.asking):
            if number >= 0:
                text = self._told(number, text)
            passage = self.backbone.run(
                text,
                cache=cache,
                chunk=self.chunk,
                start_stage=None if number < 0 else number,
                stop_stage=number + 1,
                on_pass=on_pass,
            )
            text = passage.hidden
        return text

    def _told(self, number: int, text: Tensor) -> Tensor:
        dropped = self.dropped.get(number)
        if dropped is None or not dropped[0].shape[1]:
            return text
        stage = self.backbone.transv[number]
        assert isinstance(stage, TransV)
        key, value = (x.to(text.device, non_blocking=True) for x in dropped)
        return stage.read(text, key, value)

    @cached_property
    def _placed(self) -> tuple[VisualSpan, Tensor | None]:
        """Span of the rows' vision tokens, and where they lie in it if text lies between them.

        Found once: questions then copy no index to the device, which would be a host sync.
        """
        none = torch.empty(0, dtype=torch.int64)
        source = torch.cat([none, *(part.source for part in self.rows)])
        front = self.segment.span.start
        # text between runs of vision stays inside, even if the last run was dropped
        span = VisualSpan(front, len(source) - front)
        at = (source[front:] >= 0).nonzero()[:, 0]
        inside = span.length - len(at)
        return span, at[None].to(self.backbone.embeddings.weight.device) if inside else None

    def _at_the_stage(self, length: int) -> Segment:
        """Where the vision tokens lie in the rows and the question behind them."""
        if not self.segment.vision_tokens:
            return Segment(length)
        span, index = self._placed
        inside = 0 if index is None else span.length - index.shape[1]
        counted: tuple[Segment, ...] = (self.segment,)
        for stage in self.backbone.stages[: self.asking]:
            counted = shorten(counted, stage)
        return Segment(
            length,
            span,
            vision_tokens=counted[0].vision_tokens,
            text_inside=inside,
            index=index,
        )


def _together(records: Sequence[StageRecord]) -> StageRecord:
    """One record of a stage for all rows."""
    first = records[0]
    kept = torch.cat([record.kept for record in records])
    if first.scores is None:
        return first._replace(kept=kept)
    scores = torch.cat([record.scores for record in records if record.scores is not None])
    return first._replace(kept=kept, scores=scores)
