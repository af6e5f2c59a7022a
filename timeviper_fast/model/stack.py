"""The loop through an LLM's layers, with compression stages between them; it can stop at a stage.

`nemotron_h.py` computes a layer, `transv.py` a stage.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.errors import ArgumentError, fail, is_integer
from timeviper_fast.layout import Segment
from timeviper_fast.model.cache import AttentionState, HybridCache
from timeviper_fast.model.qwen2 import Rotary
from timeviper_fast.model.transv import StageRecord
from timeviper_fast.stops import Stop, StopWatch

__all__ = ["LayerStack", "Packing", "Passage"]


class Packing(NamedTuple):
    """The packed samples of a sequence. With a cache there is one sample, and this is not read.

    Attributes:
        lengths: tokens of each sample.
        seq_idx: (batch, seqlen) int32, the sample each token belongs to; None when there is one.
        rotary: the tokens' rotary positions; None where attention has no positions.
    """

    lengths: tuple[int, ...]
    seq_idx: Tensor | None
    rotary: Rotary | None = None


def _pack(segments: tuple[Segment, ...], hidden: Tensor) -> Packing:
    lengths = tuple(segment.length for segment in segments)
    if len(lengths) == 1:
        return Packing(lengths, None)
    # create it on the device: a copy from the host would be a host sync
    made = partial(torch.full, dtype=torch.int32, device=hidden.device)
    index = torch.cat([made((length,), i) for i, length in enumerate(lengths)])
    return Packing(lengths, index.expand(len(hidden), -1))


class Passage(NamedTuple):
    """The result of running a part of the stack, from which the next part continues.

    Attributes:
        hidden: (batch, seqlen after dropping, d_model), the residual stream.
        segments: where the vision tokens lie in it.
        records: for every stage that ran, one record per sample.
    """

    hidden: Tensor
    segments: tuple[Segment, ...]
    records: list[list[StageRecord]]


class LayerStack(nn.Module):
    """Layers on one residual stream, and the compression stages in front of some of them.

    Attributes:
        config: the layers' shape.
        layers: called as layer(x, packing, state); a stage reads its layer's `mixer` and `norm`.
        transv: one module per stage, in the order of their layers.
    """

    config: BackboneConfig
    layers: nn.ModuleList
    transv: nn.ModuleList

    @property
    def stages(self) -> tuple[CompressionStage, ...]:
        return tuple(module.stage for module in self.transv)  # type: ignore[misc]

    def forward(
        self,
        hidden: Tensor,
        segments: tuple[Segment, ...] | None = None,
        cache: HybridCache | None = None,
        chunk: int | None = None,
        watch: StopWatch | None = None,
        on_pass: Callable[[int], None] | None = None,
        log_scores: bool = False,
    ) -> tuple[Tensor, list[list[StageRecord]]]:
        """Run every layer and every compression stage; arguments and errors are those of `run`.

        Returns:
            The last layer's residual stream (batch, seqlen after dropping, d_model), before
            the final norm, and for every stage one record per sample.
        """
        passage = self.run(
            hidden,
            segments,
            cache=cache,
            chunk=chunk,
            watch=watch,
            on_pass=on_pass,
            log_scores=log_scores,
        )
        return passage.hidden, passage.records

    def run(
        self,
        hidden: Tensor,
        segments: tuple[Segment, ...] | None = None,
        *,
        cache: HybridCache | None = None,
        chunk: int | None = None,
        watch: StopWatch | None = None,
        on_pass: Callable[[int], None] | None = None,
        log_scores: bool = False,
        start_stage: int | None = None,
        stop_stage: int | None = None,
        staged: bool = False,
    ) -> Passage:
        """Run the layers from one stage up to another.

        Args:
            hidden: (batch, seqlen, d_model) embeddings, or the result of an earlier call that
                stopped before `start_stage`. Not modified.
            segments: the samples packed one behind the other, with their vision spans; None means
                one sample without vision. Every row of the batch has the same layout.
            cache: continued and written in place (inference, one segment); None for training.
            chunk: with a cache, tokens that pass through the layers at a time. Any value gives the
                same result; small ones bound the memory. None: all at once.
            watch: times the compression stages.
            on_pass: called with (tokens times layers) when a chunk has been queued through the
                layers up to the next stage; on CUDA the device may not have computed it yet.
            log_scores: whether the records of attention stages carry `log_scores`, for a loss on
                what they keep.
            start_stage: the stage to begin with (0 is the first); None begins at the first layer.
            stop_stage: the stage to stop before; None runs to the last layer.
            staged: whether the stage `start_stage` has run already.

        Raises:
            ValueError: segments do not cover the sequence or only count tokens, a cache is given
                with several, or there is no such stage.
        """
        segments = segments or (Segment(hidden.shape[1]),)
        _check(hidden, segments, cache, chunk)
        first = -1 if start_stage is None else start_stage
        end = len(self.stages) if stop_stage is None else stop_stage
        if not 0 <= (start_stage or 0) <= end <= len(self.stages):
            rule = f"name stages in order, 0 to {len(self.stages)}"
            fail("run", "start_stage, stop_stage", rule, (start_stage, stop_stage))
        records: list[list[StageRecord]] = []
        given = hidden
        for number in range(first, end):
            layers = self._layers_behind(number)
            done = staged and number == first
            if number >= 0 and not done and any(segment.vision_tokens for segment in segments):
                layer = self.layers[layers.start]
                with self.timed(watch, number) as stop:
                    stage = self.transv[number]
                    given_to = (hidden, segments, layer.mixer, layer.norm, log_scores)
                    hidden, segments, record = stage(*given_to)
                    stop.tokens = f"{record[0].tokens_before} -> {record[0].tokens_after}"
                records.append(record)
            if layers:
                packing = _pack(segments, hidden)
                own = hidden is not given
                step = partial(self._step, layers, packing, cache, on_pass)
                hidden = _in_chunks(step, hidden, None if cache is None else chunk, own)
        return Passage(hidden, segments, records)

    def timed(self, watch: StopWatch | None, number: int) -> AbstractContextManager[Stop]:
        """Times a block as the compression stage `number`; without a watch, nothing."""
        stage = self.stages[number]
        name = f"prefill: {stage.select} stage before {self.config.named(stage.layer)}"
        return nullcontext(Stop(name)) if watch is None else watch.at(name)

    def _layers_behind(self, number: int) -> range:
        """The layers between stage `number` (-1: the beginning) and the next one (or the end)."""
        edges = [0, *(stage.layer for stage in self.stages), len(self.layers)]
        return range(edges[number + 1], edges[number + 2])

    def _step(
        self,
        layers: range,
        packing: Packing,
        cache: HybridCache | None,
        on_pass: Callable[[int], None] | None,
        x: Tensor,
    ) -> Tensor:
        if self.config.rope_theta:
            packing = packing._replace(rotary=self._rotary(layers, packing, cache, x))
        for i in layers:
            x = self.layers[i](x, packing, None if cache is None else cache.layers[i])
        if on_pass is not None:
            on_pass(x.shape[1] * len(layers))
        return x

    def _rotary(
        self, layers: range, packing: Packing, cache: HybridCache | None, x: Tensor
    ) -> Rotary:
        """Positions in every sample as it enters these layers: 0, 1, ... with no gap for dropped
        tokens. A cache holds one sample; its keys and values say how many tokens came before."""
        starts, lengths = [0] * len(packing.lengths), packing.lengths
        if cache is not None:
            # a stage stands before a whole block, which begins with its attention
            state = cache.layers[layers.start]
            assert isinstance(state, AttentionState)
            if not state.even:
                # one token of each row, at positions that the device alone knows
                return Rotary.at(self.config, state.start + state.lengths[:, None], x)
            starts, lengths = [state.start + state.longest], (x.shape[1],)
        return Rotary.of(self.config, starts, lengths, x)


def _in_chunks(
    step: Callable[[Tensor], Tensor], hidden: Tensor, chunk: int | None, own: bool
) -> Tensor:
    """Run `step` on `chunk` tokens at a time. `own`: `hidden` may be overwritten."""
    if chunk is None or chunk >= hidden.shape[1]:
        return step(hidden)
    # out may be hidden itself: each chunk is read before its result overwrites it, and no later
    # chunk reads it again, because the layers keep their keys and states in the cache
    out = hidden if own else torch.empty_like(hidden)
    for start in range(0, hidden.shape[1], chunk):
        out[:, start : start + chunk] = step(hidden[:, start : start + chunk])
    return out


def _check(
    hidden: Tensor,
    segments: tuple[Segment, ...],
    cache: HybridCache | None,
    chunk: int | None,
) -> None:
    total = sum(segment.length for segment in segments)
    if total != hidden.shape[1]:
        raise ArgumentError("", "segments", f"cover the sequence ({hidden.shape[1]})", total)
    if cache is not None and len(segments) > 1:
        raise ArgumentError("", "segments", "be one when a cache is given", len(segments))
    if any(segment.text_inside and segment.index is None for segment in segments):
        # a stage would take the text between the runs for vision tokens, and drop it
        fail("", "segments", "say where their vision tokens lie (Segment.of_runs)", segments)
    if chunk is not None and not (is_integer(chunk) and chunk > 0):
        fail("", "chunk", "be a positive number of tokens", chunk)
