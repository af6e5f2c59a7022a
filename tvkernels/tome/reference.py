"""Token merging in plain PyTorch: all rounds on the narrow metric, the wide tokens touched once.

The metric is linear in the tokens and merging is a size-weighted mean, so a merged token's metric
is the sum of its members' metrics up to a positive factor, which a cosine does not see. The rounds
therefore carry only that sum and each input token's slot; sizes are a histogram at the end.
They run in float64 and compare similarities rounded to float32: a matrix product rounds the same
dot product differently at different positions, and equal tokens must tie to the lower index. On a
device without float64 they run in float32, with a warning: equal tokens may then tie otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from tvkernels.core.plain import one_operator, widest

# similarities computed at once: 4 MB, which stays in cache, and memory stays linear in seqlen
SCORE_BLOCK = 1 << 19


class ToMeResult(NamedTuple):
    """What `tome_merge` returns.

    tokens: (batch, num_tokens, dim), the dtype of x: the mean of each slot's input tokens.
    sizes: (batch, num_tokens) int32, how many input tokens each slot holds.
    assignment: (batch, seqlen) int32, the slot of each input token.
    """

    tokens: torch.Tensor
    sizes: torch.Tensor
    assignment: torch.Tensor


def tome_merge_ref(
    x: torch.Tensor, num_tokens: int, *, num_heads: int = 16, order: str = "raw"
) -> ToMeResult:
    """`tome_merge` in plain PyTorch; arguments and result are the same."""
    acc = torch.promote_types(x.dtype, torch.float32)
    wide = x.to(acc)
    with torch.no_grad():
        slots = _match(wide.unflatten(-1, (num_heads, -1)).mean(2), num_tokens)
        sizes = torch.zeros(x.shape[0], num_tokens, dtype=torch.int64, device=x.device)
        sizes.scatter_add_(1, slots, torch.ones_like(slots))
        if order != "raw":
            by_size = sizes.argsort(dim=1, descending=order == "descending", stable=True)
            sizes = sizes.gather(1, by_size)
            slots = _inverse(by_size).gather(1, slots)
    if num_tokens == x.shape[1]:
        # a copy: changing the result in place must not change x
        tokens = x.clone()
    else:
        tokens = (_slot_sum(wide, slots, num_tokens) / sizes[..., None]).to(x.dtype)
    return ToMeResult(tokens, sizes.int(), slots.int())


def _fake_match(metric: torch.Tensor, num_tokens: int) -> torch.Tensor:
    return metric.new_empty(metric.shape[:2], dtype=torch.int64)


@one_operator("tvkernels::tome_match", fake=_fake_match)
def _match(metric: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """(batch, seqlen) int64: the slot of each token of `metric` (batch, seqlen, width)."""
    batch, seqlen, _ = metric.shape
    slots = torch.arange(seqlen, device=metric.device).repeat(batch, 1)
    # one token that is not finite would spoil every cosine; its metric counts as 0
    sums = metric.where(metric.isfinite(), 0.0)
    sums = sums.to(widest(metric, "tome_merge", "equal tokens may tie to a higher index"))
    while (count := sums.shape[1]) > num_tokens:
        merged = min(count - num_tokens, count // 2)
        moves = _one_round(sums, merged)
        sums = _slot_sum(sums, moves, count - merged)
        slots = moves.gather(1, slots)
    return slots


def _one_round(sums: torch.Tensor, merged: int) -> torch.Tensor:
    """(batch, count) int64: where each token goes when `merged` even tokens join odd ones.

    Even tokens that stay come first, best matched first, then the odd tokens.
    """
    even, odd = _unit(sums[:, 0::2]), _unit(sums[:, 1::2])
    kept = even.shape[1] - merged
    best, partner = _best_partner(even, odd)
    moves = torch.empty(sums.shape[:2], dtype=torch.int64, device=sums.device)
    moves[:, 0::2] = kept + partner
    # if every even token is merged this round, their order is not needed
    if kept:
        rank = _inverse(best.argsort(dim=1, descending=True, stable=True))
        moves[:, 0::2] = torch.where(rank < merged, moves[:, 0::2], rank - merged)
    moves[:, 1::2] = torch.arange(kept, kept + odd.shape[1], device=sums.device)
    return moves


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Each row at length 1; a zero vector stays one, and has similarity 0 with everything."""
    tiny = torch.finfo(rows.dtype).tiny
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(tiny)


def _best_partner(even: torch.Tensor, odd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each even token's highest similarity to an odd token, and the first odd token that has it."""
    rows = max(1, SCORE_BLOCK // max(1, even.shape[0] * odd.shape[1]))
    last = odd.shape[1] - 1
    behind = torch.arange(last, -1, -1, dtype=torch.float32, device=odd.device)
    best, partner = [], []
    for block in even.split(rows, dim=1):
        scores = (block @ odd.mT).float()
        best.append(scores.amax(-1))
        # in place and in one dtype: `max` with indices takes three times as long
        partner.append(last - scores.eq_(best[-1][..., None]).mul_(behind).amax(-1).long())
    return torch.cat(best, 1), torch.cat(partner, 1)


def _slot_sum(rows: torch.Tensor, slots: torch.Tensor, count: int) -> torch.Tensor:
    """(batch, count, width): the sum of the rows in each slot, in index order (repeatable)."""
    batch, _, width = rows.shape
    base = count * torch.arange(batch, device=rows.device)
    out = rows.new_zeros(batch * count, width)
    out = out.index_add(0, (slots + base[:, None]).flatten(), rows.flatten(0, 1))
    return out.unflatten(0, (batch, count))


def _inverse(permutation: torch.Tensor) -> torch.Tensor:
    """The inverse of each row's permutation."""
    positions = torch.arange(permutation.shape[1], device=permutation.device)
    return torch.empty_like(permutation).scatter_(1, permutation, positions.expand_as(permutation))
