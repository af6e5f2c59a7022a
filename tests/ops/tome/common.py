"""Inputs of tome_merge and a float64 form that merges step by step."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import HealthCheck, settings

from tests.contract import device
from tests.interpreter import INTERPRETED
from tvkernels.tome import tome_merge

law = settings(
    # the interpreter takes half a second for what the reference does in one millisecond
    max_examples=8 if INTERPRETED else 20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def naive_row(
    x: torch.Tensor, num_tokens: int, num_heads: int, gaps: list[float] | None = None
) -> list[list[int]]:
    """Members of each slot of one row (seqlen, dim), in raw order: merged means, round by round.

    `gaps` gets the differences of similarities, but for exact ties, that any choice rested on.
    """
    x = x.detach().double().cpu()
    slots = [[i] for i in range(len(x))]
    while len(slots) > num_tokens:
        merged = min(len(slots) - num_tokens, len(slots) // 2)
        units = []
        for members in slots:
            mean = torch.stack([x[i] for i in members]).mean(0)
            metric = mean.view(num_heads, -1).mean(0)
            norm = float(metric.norm())
            units.append(metric / norm if norm > 0 else metric)
        even, odd = list(range(0, len(slots), 2)), list(range(1, len(slots), 2))
        # round to twelve digits, so that values equal in exact arithmetic compare as equal
        scores = [[round(float(units[i] @ units[j]), 12) for j in odd] for i in even]
        partner = [row.index(max(row)) for row in scores]
        order = sorted(range(len(even)), key=lambda i: (-max(scores[i]), i))
        if gaps is not None:
            ranked = [sorted(row) for row in (*scores, [max(row) for row in scores])]
            gaps += [b - a for row in ranked[:-1] for a, b in [two_best(row)] if b > a]
            gaps += [b - a for a, b in pairwise(ranked[-1]) if b > a]
        grown = [list(slots[j]) for j in odd]
        for i in order[:merged]:
            grown[partner[i]] += slots[even[i]]
        slots = [slots[even[i]] for i in order[merged:]] + grown
    return slots


def two_best(row: list[float]) -> tuple[float, float]:
    """The highest value of a sorted row, and the next lower distinct value."""
    return max((a for a in row if a < row[-1]), default=row[-1]), row[-1]


def naive_tome(
    x: torch.Tensor, num_tokens: int, num_heads: int = 4, order: str = "raw"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, sizes = [], []
    assignment = torch.zeros(x.shape[:2], dtype=torch.int32)
    for b, row in enumerate(x):
        slots = naive_row(row, num_tokens, num_heads)
        if order != "raw":
            slots = sorted(slots, key=len, reverse=order == "descending")
        tokens.append(torch.stack([row[members].mean(0) for members in slots]))
        sizes.append([len(members) for members in slots])
        for s, members in enumerate(slots):
            assignment[b, members] = s
    sizes = torch.tensor(sizes, dtype=torch.int32, device=x.device)
    return torch.stack(tokens), sizes, assignment.to(x.device)


def ours(x: torch.Tensor, num_tokens: int, num_heads: int = 4, order: str = "raw"):
    return tome_merge(x, num_tokens, num_heads=num_heads, order=order)


def clusters(batch: int, seqlen: int, dim: int, seed: int = 0) -> torch.Tensor:
    """On the device of the backend in force."""
    g = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(5, dim, generator=g)
    which = torch.randint(0, 5, (batch, seqlen), generator=g)
    return (centres[which] + torch.randn(batch, seqlen, dim, generator=g)).to(device())
