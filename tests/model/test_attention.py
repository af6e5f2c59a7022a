"""Attention over a cache: shared prefixes and ragged tails against each row by itself."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.model.attention import attend, attend_last
from timeviper_fast.model.cache import AttentionState

HEADS, KV, WIDTH = 4, 2, 8


def tokens(n: int, seed: int, heads: int = KV, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, heads, WIDTH, generator=generator)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The last n of m tokens, one at a time."""
    n, m, outs = q.shape[1], k.shape[1], []
    for i in range(n):
        seen = m - n + i + 1
        keys, values = (x[0, :seen].repeat_interleave(HEADS // KV, 1).double() for x in (k, v))
        weights = torch.einsum("hd,shd->hs", q[0, i].double(), keys) / WIDTH**0.5
        outs.append(torch.einsum("hs,shd->hd", weights.softmax(-1), values))
    return torch.stack(outs)[None].float()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (1, 9), (3, 9), (300, 700)])
def test_the_last_tokens_see_those_before(n: int, m: int) -> None:
    q, k, v = tokens(n, 1, HEADS), tokens(m, 2), tokens(m, 3)
    torch.testing.assert_close(attend_last(q, k, v), by_hand(q, k, v))


def test_rows_of_unequal_lengths_share_a_prefix() -> None:
    video = AttentionState((1, 20, KV, WIDTH), None, torch.float32)
    video.append(tokens(20, 1), tokens(20, 2))
    fork = video.fork(2, 9)
    texts = [(tokens(n, 10 + n), tokens(n, 20 + n)) for n in (5, 3)]
    rows = [fork.row(0), fork.row(1)]
    for row, (key, value) in zip(rows, texts):
        row.append(key, value)
        q = tokens(key.shape[1], 7, HEADS)
        want = by_hand(q, torch.cat([tokens(20, 1), key], 1), torch.cat([tokens(20, 2), value], 1))
        torch.testing.assert_close(attend(q, row), want)
    fork.longest, fork.even = 5, False
    key, value, q = tokens(1, 30, batch=2), tokens(1, 31, batch=2), tokens(1, 32, HEADS, 2)
    fork.append(key, value)
    out = attend(q, fork)
    for r, (own, content) in enumerate(texts):
        k = torch.cat([tokens(20, 1), own, key[r : r + 1]], 1)
        v = torch.cat([tokens(20, 2), content, value[r : r + 1]], 1)
        torch.testing.assert_close(out[r : r + 1], by_hand(q[r : r + 1], k, v))
    assert fork.lengths.tolist() == [6, 4]
