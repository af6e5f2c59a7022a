"""Other formulations of our ops, written plainly, to measure against and to agree with."""

from __future__ import annotations

import torch

__all__ = ["tome_per_round"]


def tome_per_round(x: torch.Tensor, num_tokens: int, num_heads: int = 16) -> torch.Tensor:
    """Token merging as upstream TimeViper states it: every round rewrites the full-width tokens.

    Each round averages the heads anew, sorts the even tokens by their best match, gathers the kept
    and the merged ones, adds the merged into their partners, and joins the two parts.
    """
    size = torch.ones_like(x[..., :1])
    while (count := x.shape[1]) > num_tokens:
        merged = min(count - num_tokens, count // 2)
        metric = x.unflatten(-1, (num_heads, -1)).mean(2)
        metric = metric / metric.norm(dim=-1, keepdim=True)
        best, partner = (metric[:, 0::2] @ metric[:, 1::2].mT).max(-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        leaving, staying = order[:, :merged], order[:, merged:]
        target = partner[..., None].gather(1, leaving)
        total = _merge(x * size, leaving, staying, target)
        size = _merge(size, leaving, staying, target)
        x = total / size
    return x


def _merge(
    x: torch.Tensor, leaving: torch.Tensor, staying: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    even, odd, width = x[:, 0::2], x[:, 1::2], x.shape[-1]
    kept = even.gather(1, staying.expand(-1, -1, width))
    moved = even.gather(1, leaving.expand(-1, -1, width))
    return torch.cat([kept, odd.scatter_add(1, target.expand(-1, -1, width), moved)], dim=1)
