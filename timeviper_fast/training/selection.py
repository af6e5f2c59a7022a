"""A loss on what attention stages keep, for samples that know which frames answer the question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timeviper_fast.model.transv import StageRecord

__all__ = ["selection_loss"]


def selection_loss(
    records: Sequence[Sequence[StageRecord]],
    needed: Sequence[Sequence[int]],
    tokens_per_frame: int,
) -> Tensor | None:
    """Minus the logarithm of the share that needed frames have in the vision tokens' scores.

    The mean over samples and attention stages. A needed frame counts by its tokens that earlier
    stages left; a sample without such a token is left out.

    Args:
        records: per stage one per sample, with `log_scores`, of a packed sequence.
        needed: the numbers of each sample's frames that answer its question.
        tokens_per_frame: vision tokens of one frame before the first stage.

    Returns:
        A scalar float32, or None if no sample has a needed token at an attention stage.
    """
    losses = []
    for i, frames in enumerate(needed):
        if not frames:
            continue
        wanted = torch.tensor(sorted(frames))
        original: Tensor | None = None
        for stage in records:
            record = stage[i]
            if original is None:
                original = torch.arange(record.tokens_before)
            if record.log_scores is not None:
                hit = torch.isin(original // tokens_per_frame, wanted)
                if bool(hit.any()):
                    logs = record.log_scores[0]
                    among = logs[hit.nonzero().flatten().to(logs.device)]
                    losses.append(logs.logsumexp(0) - among.logsumexp(0))
            original = original[record.kept[0].cpu()]
    return torch.stack(losses).mean() if losses else None
