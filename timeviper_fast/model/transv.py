"""TransV: drop vision tokens inside the LLM, after adding their content to the text behind them.

    text + tanh(alpha) * W_o attend(W_q text, W_k dropped, W_v dropped)       (arXiv 2511.16595)

A stage keeps evenly spaced tokens, those that differ most from the frame before (`content.py`), or
those with the highest attention from one query token under the projections of the layer that
follows. Two choices look odd and are kept because
TimeViper's checkpoints were trained with them: by default scores come from the residual stream
BEFORE the layer's RMSNorm, without positions (`CompressionStage.score`), and the query is a single
token, at inference the last of the prompt. Counts are relative to the original vision tokens.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.layout import Segment
from timeviper_fast.model.content import changes, most_changed
from timeviper_fast.model.qwen2 import Rotary
from tvkernels import (
    attention_topk_hidden,
    compact,
    dropped_indices,
    gated_cross_attention,
    uniform_topk,
)

__all__ = ["StageRecord", "TransV"]


class StageRecord(NamedTuple):
    """The result of one stage for one sample.

    Attributes:
        layer: the stage ran before this layer.
        tokens_before, tokens_after: vision tokens.
        kept: (batch, tokens_after) numbers among the vision tokens before the stage, ascending;
            text between runs of vision is not counted.
        scores: (batch, tokens_before) float32 attention scores; None for uniform stages.
        log_scores: (batch, tokens_before) float32 or float64, their logarithms with gradients; None
            unless they were asked for, and for uniform stages.
    """

    layer: int
    tokens_before: int
    tokens_after: int
    kept: Tensor
    scores: Tensor | None
    log_scores: Tensor | None = None


class Norm(Protocol):
    """What a stage reads of its layer's RMSNorm."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor: ...


class TransV(nn.Module):
    """One compression stage; without transfer it has no parameters."""

    def __init__(self, stage: CompressionStage, config: BackboneConfig) -> None:
        super().__init__()
        self.stage, self.config, self.head_dim = stage, config, config.head_dim
        if stage.transfer:
            q_width = config.num_attention_heads * config.head_dim
            kv_width = config.num_key_value_heads * config.head_dim
            self.q_proj = nn.Linear(config.hidden_size, q_width, bias=config.attention_bias)
            self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
            self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
            self.o_proj = nn.Linear(q_width, config.hidden_size, bias=False)
            self.alpha = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        hidden: Tensor,
        segments: tuple[Segment, ...],
        mixer: nn.Module,
        norm: Norm,
        log_scores: bool = False,
    ) -> tuple[Tensor, tuple[Segment, ...], list[StageRecord]]:
        """Shorten every sample of a sequence.

        Args:
            hidden: (batch, seqlen, d_model), the residual stream that enters the stage's layer.
            segments: the samples packed in it, in order.
            mixer: the layer's mixer; its q_proj and k_proj score the tokens of attention stages.
            norm: the layer's RMSNorm; stages that score the normed stream apply it.
            log_scores: whether the records of attention stages carry `log_scores`.

        Returns:
            The shorter stream, its segments, and one record per sample.
        """
        records: list[StageRecord] = []
        leaving: list[Tensor] = []
        after: list[Segment] = []
        start = 0
        for segment in segments:
            sample = hidden[:, start : start + segment.length]
            kept, dropped, scores = self._choose(sample, segment, mixer, norm)
            counts = (segment.vision_present, kept.shape[1])
            logs = None
            if log_scores and self.stage.select == "attention":
                logs = self._log_scores(sample, segment, mixer, norm)
            records.append(StageRecord(self.stage.layer, *counts, kept, scores, logs))
            leaving.append(segment.positions(dropped) + start)
            left = segment.keep(kept)
            after.append(left.counted_anew() if self.stage.by_content else left)
            start += segment.length
        shorter = compact(hidden, torch.cat(leaving, 1), return_dropped=self.stage.transfer)
        if shorter.dropped is not None:
            self._transfer(hidden, segments, shorter.dropped, shorter.kept, after)
        return shorter.kept, tuple(after), records

    def divide(
        self, rows: Tensor, text: Tensor, segment: Segment, mixer: nn.Module, norm: Norm
    ) -> tuple[Tensor, Segment, StageRecord]:
        """Shorten the sample [rows][text] without putting it together: a session's rows may be as
        large as the video.

        Args:
            rows: (batch, n, d_model), the sample up to its last vision token.
            text: (batch, m, d_model), what stands behind it, with the query as its last token; m
                may be 0.
            segment: the sample.
            mixer, norm: as in `forward`, and so are the results.
        """
        kept, dropped, scores = self._choose(rows, segment, mixer, norm, text)
        counts = (segment.vision_present, kept.shape[1])
        record = StageRecord(self.stage.layer, *counts, kept, scores)
        leaving = segment.positions(dropped)
        staying, gone, _ = compact(rows, leaving, return_dropped=self.stage.transfer)
        if gone is not None and gone.shape[1] and text.shape[1]:
            text = self.read(text, *self.keys_values(gone))
        # what is dropped need not live while the others are copied
        del gone
        return torch.cat([staying, text], dim=1), segment.keep(kept), record

    def _choose(
        self,
        sample: Tensor,
        segment: Segment,
        mixer: nn.Module,
        norm: Norm,
        tail: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(kept, dropped, scores); kept and dropped are (batch, n) numbers of present tokens.
        `tail` is the end of the sample, if it lies apart."""
        keep = self.stage.kept_count(segment.vision_tokens, segment.frame_tokens)
        if self.stage.by_content:
            kept = self._by_content(sample, segment, keep)
            return kept, dropped_indices(kept, segment.vision_present), None
        if self.stage.select == "attention":
            return self._by_attention(sample, segment, keep, mixer, norm, tail)
        kept = self.spaced(segment.vision_present, keep, sample.device)
        dropped = dropped_indices(kept, segment.vision_present)
        return kept.expand(len(sample), -1), dropped.expand(len(sample), -1), None

    def _by_content(self, sample: Tensor, segment: Segment, keep: int) -> Tensor:
        """(batch, keep) numbers of the tokens that differ most from the frame before; finding them
        is a host sync."""
        vision = torch.arange(segment.vision_present, device=sample.device)
        if not len(vision):
            return vision.expand(len(sample), -1)
        at = segment.positions(vision.expand(len(sample), -1))
        best, kept = self.stage.match == "best", []
        for row, place in zip(sample, at):
            frames = row[place].unflatten(0, (-1, segment.frame_tokens))
            scores = changes(frames, None, best).flatten()
            kept.append(most_changed(scores, keep).nonzero()[:, 0])
        return torch.stack(kept)

    def spaced(self, length: int, keep: int, device: torch.device) -> Tensor:
        """(keep,) int64, the evenly spaced tokens that a uniform stage keeps of `length`."""
        if self.stage.spacing == "exact":
            return uniform_topk(length, keep, device)
        # the rule is that of a CPU's float64: a GPU rounds its step to float32
        kept = torch.linspace(0, max(length - 1, 0), keep, dtype=torch.int64, device="cpu")
        if device.type == "cuda":
            # from pageable memory the copy would be a host sync
            kept = kept.pin_memory()
        return kept.to(device, non_blocking=True)

    def _positions(self, tokens: int, like: Tensor) -> Rotary | None:
        """Rotary positions of the tokens that a stage scores; None where it scores without."""
        if self.stage.score == "raw" or not self.config.rope_theta:
            return None
        return Rotary.of(self.config, [0], (tokens,), like)

    def _by_attention(
        self,
        sample: Tensor,
        segment: Segment,
        keep: int,
        mixer: nn.Module,
        norm: Norm,
        tail: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            # Causal: the query sees only earlier tokens. In training the answer follows it and
            # must not leak.
            length = segment.length - segment.query_from_end
            seen, rest = sample[:, :length], None
            if tail is not None and tail.shape[1]:
                rest = tail[:, : length - sample.shape[1]]
            query, on_keys = (seen if rest is None else rest)[:, -1], None
            if self.stage.score == "normed":
                query, on_keys = norm(query), (norm.weight, norm.eps)
            # under autocast the projection has another dtype than the residual stream
            q = mixer.q_proj(query).to(seen.dtype)  # type: ignore[operator]
            q = q.unflatten(-1, (-1, self.head_dim))
            rotary = self._positions(length, seen)
            if rotary is not None:
                q = rotary.last.turn(q[:, None])[:, 0]
            key: nn.Linear = mixer.k_proj  # type: ignore[assignment]
            select = partial(
                attention_topk_hidden, q, seen, key.weight,
                span=(segment.span.start, segment.span.length),
                norm_weight=on_keys, k_bias=key.bias, rope=rotary, tail=rest,
            )  # fmt: skip
            if segment.index is None:
                chosen = select(keep=keep)
                return chosen.kept, chosen.dropped, chosen.scores
            # The op would choose among the whole span, text included: use only its scores.
            scores = select(keep=0).scores
            scores = scores.gather(1, segment.index.expand(len(sample), -1))
            # stable: equal scores keep the lower index, as in the op
            order = scores.argsort(dim=-1, descending=True, stable=True)
            kept = order[:, :keep].sort(-1).values
            return kept, dropped_indices(kept, segment.vision_present), scores

    def _log_scores(self, sample: Tensor, segment: Segment, mixer: nn.Module, norm: Norm) -> Tensor:
        """(batch, vision_present) logarithms of the scores, with gradients.

        The logarithm is taken of the softmax in one step: scores that underflow to 0 keep it.
        """
        seen = sample[:, : segment.length - segment.query_from_end]
        if self.stage.score == "normed":
            seen = norm(seen)
        q = mixer.q_proj(seen[:, -1:]).unflatten(-1, (-1, self.head_dim))  # type: ignore[operator]
        k = mixer.k_proj(seen).unflatten(-1, (-1, self.head_dim))  # type: ignore[operator]
        rotary = self._positions(seen.shape[1], seen)
        if rotary is not None:
            q, k = rotary.last.turn(q), rotary.turn(k)
        grouped = q[:, 0].unflatten(1, (k.shape[2], -1)) / math.sqrt(self.head_dim)
        if k.dtype != torch.float64:
            grouped, k = grouped.float(), k.float()
        logits = torch.einsum("bkgd,bskd->bkgs", grouped, k).flatten(1, 2)
        logs = logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])
        inside = logs[:, segment.span.start : segment.span.stop]
        if segment.index is None:
            return inside
        return inside.gather(1, segment.index.expand(len(sample), -1))

    def _transfer(
        self,
        hidden: Tensor,
        segments: tuple[Segment, ...],
        dropped: Tensor,
        shorter: Tensor,
        after: list[Segment],
    ) -> None:
        """Add the content of each sample's rows of `dropped` to its text in `shorter`, in place.

        Only the text behind the last vision token is changed: text between runs must not see
        tokens that follow it.
        """
        start = row = end = 0
        for segment, left in zip(segments, after):
            text = hidden[:, start + segment.span.stop : start + segment.length]
            start, end = start + segment.length, end + left.length
            count = segment.length - left.length
            if count:
                told = self.read(text, *self.keys_values(dropped[:, row : row + count]))
                shorter[:, end - text.shape[1] : end] = told
            row += count

    def keys_values(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What text reads of dropped tokens (batch, m, d_model): their keys and values, each
        (batch, m, nkvheads, headdim). The rows are projected as they are, without the norm."""
        # under autocast projections have another dtype than the residual stream
        heads = (proj(rows).to(rows.dtype) for proj in (self.k_proj, self.v_proj))
        key, value = (x.unflatten(-1, (-1, self.head_dim)) for x in heads)
        return key, value

    def read(self, text: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`text` (batch, n, d_model) with the content of dropped tokens added, given by their keys
        and values (batch, m, nkvheads, headdim)."""
        return gated_cross_attention(
            text,
            self.q_proj(text).to(text.dtype).unflatten(-1, (-1, self.head_dim)),
            key,
            value,
            self.alpha,
            out_proj=self.o_proj.weight,
        )
