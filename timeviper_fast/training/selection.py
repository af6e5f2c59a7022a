"""Selection loss: attention stages should score the frames that answer the question highest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timeviper_fast.model.transv import StageRecord

__all__ = ["selection_loss"]


def selection_loss(
    records: Sequence[Sequence[StageRecord]],
    needed: Sequence[Sequence[int]],
    tokens_per_clip: int,
) -> Tensor | None:
    """Negative log of the needed clips' share of the vision tokens' scores.

    It is the mean over samples and attention stages. Only tokens that earlier stages kept count; a
    sample without a needed token among them is left out.

    Args:
        records: for each stage, one record per sample of the pack, with `log_scores`.
        needed: for each sample, the numbers of the clips that answer its question; a model that
            encodes and merges each frame alone has clips of one frame.
        tokens_per_clip: vision tokens of one clip before the first stage.

    Returns:
        A scalar float32, 0 if no needed token is left; None if no sample names its frames, or no
        stage selects by attention.
    """
    losses, counted = [], []
    for i, clips in enumerate(needed):
        if not clips:
            continue
        device = records[0][i].kept.device if records else None
        wanted = torch.tensor(sorted(clips), device=device)
        original: Tensor | None = None
        for stage in records:
            record = stage[i]
            if original is None:
                original = torch.arange(record.tokens_before, device=device)
            if record.log_scores is not None:
                loss, counts = _of_sample(record.log_scores[0], original // tokens_per_clip, wanted)
                losses.append(loss)
                counted.append(counts)
            original = original[record.kept[0]]
    if not losses:
        return None
    return torch.stack(losses).sum() / torch.stack(counted).sum().clamp_min(1)


def _of_sample(logs: Tensor, clips: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """One sample's loss at one stage, and whether it counts (1 or 0). No host sync.

    Args:
        logs: (n,) logarithms of the scores.
        clips: (n,) the clip of each token.
        wanted: the needed clips.
    """
    hit = torch.isin(clips, wanted)
    there = hit.any()
    # If no needed token is left, sum over all tokens: the loss and its gradient are then 0.
    among = logs.masked_fill(~(hit | ~there), -torch.inf)
    return logs.logsumexp(0) - among.logsumexp(0), there.to(logs.dtype)
