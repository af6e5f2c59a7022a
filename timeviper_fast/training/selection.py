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
        A scalar float32, 0 if no needed token is left; None if no sample names its frames, or no
        stage selects by attention.
    """
    losses, counted = [], []
    for i, frames in enumerate(needed):
        if not frames:
            continue
        device = records[0][i].kept.device if records else None
        wanted = torch.tensor(sorted(frames), device=device)
        original: Tensor | None = None
        for stage in records:
            record = stage[i]
            if original is None:
                original = torch.arange(record.tokens_before, device=device)
            if record.log_scores is not None:
                loss, counts = _of_sample(
                    record.log_scores[0], original // tokens_per_frame, wanted
                )
                losses.append(loss)
                counted.append(counts)
            original = original[record.kept[0]]
    if not losses:
        return None
    return torch.stack(losses).sum() / torch.stack(counted).sum().clamp_min(1)


def _of_sample(logs: Tensor, frames: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """One sample's loss at one stage, and whether it counts (1 or 0). Nothing waits for the device.

    Args:
        logs: (n,) logarithms of the scores.
        frames: (n,) each token's frame.
        wanted: the needed frames.
    """
    hit = torch.isin(frames, wanted)
    there = hit.any()
    # where no needed token is left, all count, so that the loss and its gradient are 0
    among = logs.masked_fill(~(hit | ~there), -torch.inf)
    return logs.logsumexp(0) - among.logsumexp(0), there.to(logs.dtype)
