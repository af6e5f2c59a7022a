"""The training loss of packed samples, each with its own vision span and compression.

Mean next-token cross entropy over the supervised tokens of all samples, in float32. Logits are
computed at supervised positions only: with a vocabulary of 131,072 the logits of every position
would take more memory than the model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper_fast.errors import ArgumentError
from timeviper_fast.layout import Segment, VisualSpan, shorten
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.model.transv import StageRecord
from timeviper_fast.text.prompt import IGNORE_INDEX

__all__ = ["Packed", "packed_forward", "packed_loss", "training_segment"]


class Packed(NamedTuple):
    """What the model predicts for the n supervised tokens of packed samples.

    Attributes:
        loss: scalar float32, the mean cross entropy.
        logits: (n, vocabulary) float32.
        targets: (n,) int64 token ids, on the logits' device.
        samples: (n,) int64 on the CPU, the sample that each token belongs to.
        records: for every stage that ran, one record per sample.
    """

    loss: Tensor
    logits: Tensor
    targets: Tensor
    samples: Tensor
    records: list[list[StageRecord]]


def training_segment(labels: Tensor, span: VisualSpan, frame_tokens: int = 0) -> Segment:
    """One training sample's layout, with the query token that upstream trains with.

    The query token of attention stages is the one before the last answer. In the chat templates it
    closes the last user turn. (At inference it is the prompt's last token.)

    Args:
        labels: (length,) int64 on the CPU, IGNORE_INDEX where a token is not supervised.
        span: the sample's vision tokens.
        frame_tokens: those of a frame, which a content stage needs.
    """
    supervised = labels != IGNORE_INDEX
    begins = supervised & ~F.pad(supervised, (1, 0))[:-1]
    starts = begins.nonzero().flatten()
    if not len(starts):
        return Segment(len(labels), span, frame_tokens=frame_tokens)
    asks = len(labels) - int(starts[-1])
    return Segment(len(labels), span, query_from_end=asks, frame_tokens=frame_tokens)


def packed_loss(
    backbone: HybridBackbone, embeddings: Tensor, segments: tuple[Segment, ...], labels: Tensor
) -> Tensor:
    """Only the loss of `packed_forward`, a scalar; arguments and errors are the same."""
    return packed_forward(backbone, embeddings, segments, labels).loss


def packed_forward(
    backbone: HybridBackbone,
    embeddings: Tensor,
    segments: tuple[Segment, ...],
    labels: Tensor,
    *,
    log_scores: bool = False,
) -> Packed:
    """Run samples packed one after the other; no token sees another sample.

    Args:
        backbone: the language model.
        embeddings: (1, seqlen, d_model), text and vision.
        segments: one per sample, from `training_segment`.
        labels: (seqlen,) int64 on the CPU; -100 at vision tokens and at each sample's first token.
        log_scores: whether the records of attention stages carry `log_scores`, which
            `selection_loss` needs.

    Raises:
        ValueError: a batch above 1, labels of another length, dtype or range, a supervised vision
            token or first token, or no supervised token.
    """
    at = _supervised(backbone, embeddings, segments, labels)
    targets = labels[labels != IGNORE_INDEX].to(embeddings.device)
    hidden, records = backbone(embeddings, segments, log_scores=log_scores)
    logits = backbone.logits(hidden[0, torch.cat(at).to(hidden.device)])
    samples = torch.arange(len(at)).repeat_interleave(torch.tensor([len(part) for part in at]))
    return Packed(F.cross_entropy(logits, targets), logits, targets, samples, records)


def _supervised(
    backbone: HybridBackbone, embeddings: Tensor, segments: tuple[Segment, ...], labels: Tensor
) -> list[Tensor]:
    """For each sample, its positions in the compressed sequence that predict a supervised token."""
    total = sum(segment.length for segment in segments)
    if len(embeddings) != 1:
        raise ArgumentError("packed_loss", "embeddings", "be of batch 1", len(embeddings))
    if labels.shape != (total,) or labels.dtype != torch.int64:
        kind = f"{labels.dtype} {tuple(labels.shape)}"
        raise ArgumentError("packed_loss", "labels", f"be int64 ({total},)", kind)
    left = segments
    for stage in backbone.stages:
        left = shorten(left, stage)
    positions, start, new_start = [], 0, 0
    for before, after in zip(segments, left):
        at = (labels[start : start + before.length] != IGNORE_INDEX).nonzero().flatten()
        in_span = (at >= before.span.start) & (at < before.span.stop)
        if bool(in_span.any()) or (len(at) and int(at[0]) == 0):
            raise ArgumentError(
                "packed_loss",
                "labels",
                "be -100 at vision tokens and at a sample's first token",
                f"a label at token {int(at[in_span][0]) if bool(in_span.any()) else 0}",
            )
        moved = at - (at >= before.span.stop).long() * (before.length - after.length)
        positions.append(moved - 1 + new_start)
        start, new_start = start + before.length, new_start + after.length
    targets = labels[labels != IGNORE_INDEX]
    if not len(targets):
        raise ArgumentError("packed_loss", "labels", "supervise at least one token", "none")
    vocabulary = backbone.config.vocab_size
    if int(targets.min()) < 0 or int(targets.max()) >= vocabulary:
        strange = targets[(targets < 0) | (targets >= vocabulary)][0]
        raise ArgumentError("packed_loss", "labels", f"be -100 or below {vocabulary}", strange)
    return positions
