"""Prompts given as tensors, in rows of any lengths, to tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.inference.ended import Prefill, StageCount
from timeviper_fast.inference.generate import decode, read_front
from timeviper_fast.inference.request import Sampling
from timeviper_fast.model.model import TimeViperNetwork, shown

__all__ = ["Generation", "generate"]


@dataclass(frozen=True)
class Generation:
    """What `generate` returns.

    Attributes:
        token_ids: (batch, n) int64 new tokens; a row that ended early repeats its last one.
        stages: vision tokens per compression stage.
        kept: (batch, n) int64, which of the original vision tokens the last layers still saw.
    """

    token_ids: Tensor
    stages: tuple[StageCount, ...]
    kept: Tensor


def generate(
    model: TimeViperNetwork,
    before: Tensor | Sequence[Tensor],
    visual: Tensor | Sequence[Tensor] | None,
    after: Tensor | Sequence[Tensor],
    between: Sequence[Tensor],
    max_new_tokens: int,
    stop_ids: Collection[int],
    sampling: Sampling,
    chunk: int | None,
) -> Generation:
    """`TimeViper.generate`, with checked options."""
    fronts, ends = _rows("before", before), _rows("after", after)
    if len(fronts) != len(ends):
        fail("embed", "after", f"have the batch of before ({len(fronts)})", len(ends))
    groups: dict[tuple[object, ...], list[int]] = {}
    labels = [[text[row : row + 1] for text in between] for row in range(len(fronts))]
    for row, front in enumerate(fronts):
        # the one read of these ids from the device
        key = (tuple(front[0].tolist()), *(tuple(text[0].tolist()) for text in labels[row]))
        groups.setdefault(key, []).append(row)
    done: list[tuple[list[int], Tensor, Prefill]] = []
    for rows in groups.values():
        first = rows[0]
        empty = ends[first][:, :0]
        embeddings, segment = model.embed(fronts[first], visual, empty, labels[first])
        video = read_front(model.backbone, embeddings, segment, chunk=chunk)
        # without vision nothing was read: all of the text is the question
        left = embeddings[:, video.segment.length :]
        texts = [torch.cat([left, model.embed_text("after", ends[row])], dim=1) for row in rows]
        read = video.read(texts, max_new_tokens=max_new_tokens)
        tokens = decode(
            model.backbone,
            read,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            sampling=sampling,
        )
        done.append((rows, torch.stack(list(tokens), dim=1), read))
    longest = max(tokens.shape[1] for _, tokens, _ in done)
    order = torch.tensor([row for rows, _, _ in done for row in rows]).argsort().to(model.device)
    whole = [_repeat_last(tokens, longest) for _, tokens, _ in done]
    kept = torch.cat([read.kept for _, _, read in done])
    return Generation(torch.cat(whole)[order], done[0][2].stages, kept[order])


def _rows(name: str, ids: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """(1, n) ids of each row."""
    if isinstance(ids, Tensor) and ids.ndim == 2:
        return list(ids.split(1))
    lists = isinstance(ids, (list, tuple)) and bool(ids)
    if not lists or not all(isinstance(row, Tensor) and row.ndim == 1 for row in ids):
        rule = "be a tensor (batch, n) of int32 or int64, or a list of (n,)"
        raise ArgumentError("embed", name, rule, shown(ids))
    return [row[None] for row in ids]


def _repeat_last(tokens: Tensor, length: int) -> Tensor:
    missing = length - tokens.shape[1]
    return torch.cat([tokens, tokens[:, -1:].expand(-1, missing)], dim=1)
