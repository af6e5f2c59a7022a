"""Inputs of token selection and naive float64 forms to compare with."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

from tests.contract import device
from tests.interpreter import INTERPRETED

# the fixture `backend` stays the same for all examples of a run
law = settings(
    max_examples=4 if INTERPRETED else 20, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return x.to(device())


def pick(scores: list[float], keep: int) -> tuple[list[int], list[int]]:
    """The keep highest, ties to the lower index, and the rest; both ascending."""
    order = sorted(range(len(scores)), key=lambda t: (-scores[t], t))
    return sorted(order[:keep]), sorted(order[keep:])


def naive_topk(
    q: torch.Tensor, k: torch.Tensor, keep: int, span: tuple[int, int], scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Head by head, query by query."""
    q = q[:, None] if q.ndim == 3 else q
    batch, n_queries, nheads, headdim = q.shape
    start, length = span
    kept, dropped, scores = [], [], []
    for b in range(batch):
        rows = []
        for i in range(n_queries):
            for h in range(nheads):
                keys = k[b, :, h // (nheads // k.shape[2])]
                rows.append(torch.softmax(keys @ q[b, i, h] * (scale or headdim**-0.5), 0))
        score = torch.stack(rows).mean(0)[start : start + length]
        best, rest = pick(score.float().tolist(), keep)
        kept.append(best)
        dropped.append(rest)
        scores.append(score.to(torch.promote_types(q.dtype, torch.float32)))
    stacked = torch.stack(scores)
    indices = (torch.tensor(part, device=stacked.device).long() for part in (kept, dropped))
    return *indices, stacked


def naive_hidden(
    q: torch.Tensor,
    hidden: torch.Tensor,
    k_weight: torch.Tensor,
    keep: int,
    span: tuple[int, int],
    norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    angles: torch.Tensor | None = None,
    scale: float | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """VideoChat-Flash's rule said plainly: norm, project, rotate as complex numbers, score."""
    x = hidden
    if norm is not None:
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * norm
    keys = x @ k_weight.T
    keys = (keys if bias is None else keys + bias).unflatten(-1, (-1, q.shape[-1]))
    if angles is not None:
        keys = rotated(keys, angles[:, None])
    return naive_topk(q, keys, keep, span, scale)


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Channels (i, i + headdim / 2) as one complex number, turned by angles[i]."""
    first, second = x.double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def rope_angles(seqlen: int, headdim: int) -> torch.Tensor:
    frequency = 10000.0 ** (-torch.arange(headdim // 2, dtype=torch.float64) / (headdim // 2))
    return (torch.arange(seqlen, dtype=torch.float64)[:, None] * frequency).to(device())


def rope_tables(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)


def assert_same(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> None:
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[2], want[2].to(got[2].dtype), atol=1e-7, rtol=1e-5)
