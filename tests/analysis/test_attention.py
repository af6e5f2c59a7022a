"""Group masses and chosen rows of attention against the whole matrix in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.analysis.dense import QWEN2, attention_matrix, backbone, randn, turned
from tests.footprint import largest_tensor
from timeviper_fast.analysis.attention import attention_group_mass, attention_rows, projected
from timeviper_fast.model.qwen2 import Rotary


def one_hot(length: int, groups: int, seed: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(groups, (length,), generator=generator)
    return torch.nn.functional.one_hot(kind, groups).float()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (40, 40), (7, 40), (1, 40), (300, 700)])
def test_masses_and_rows_equal_the_matrix(n: int, m: int) -> None:
    q, k, groups = randn(n, 4, 8), randn(m, 2, 8, seed=1), one_hot(m, 3)
    P = attention_matrix(q, k)
    mass = attention_group_mass(q, k, groups)
    torch.testing.assert_close(mass, P @ groups.double(), rtol=0, atol=1e-13)
    rows = torch.arange(m - n, m, 3)
    blocks = list(attention_rows(q, k, rows))
    assert torch.cat([block for block, _ in blocks]).equal(rows)
    found = torch.cat([weights for _, weights in blocks], dim=1)
    torch.testing.assert_close(found, P[:, rows - (m - n)], rtol=0, atol=1e-14)


@given(
    length=st.integers(1, 60),
    queries=st.integers(1, 60),
    groups=st.integers(1, 20),
    width=st.sampled_from([2, 4, 6]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_masses_of_all_groups_sum_to_one(length, queries, groups, width, scale) -> None:
    """With more groups than the head is wide, and with logits that underflow, too. The mass on
    groups that are joined is the sum of theirs."""
    q, k = scale * randn(min(queries, length), 6, width), randn(length, 3, width, seed=1)
    indicator = one_hot(length, groups)
    mass = attention_group_mass(q, k, indicator)
    joined = attention_group_mass(q, k, indicator[:, ::2].sum(1, keepdim=True))
    torch.testing.assert_close(joined[..., 0], mass[..., ::2].sum(-1), rtol=0, atol=1e-13)
    assert mass.shape == (6, len(q), groups)
    assert mass.min() >= 0
    torch.testing.assert_close(mass.sum(-1), torch.ones(6, len(q)).double(), rtol=0, atol=1e-13)


def test_float32_is_close() -> None:
    q, k, groups = randn(200, 4, 8).float(), randn(200, 2, 8, seed=1).float(), one_hot(200, 3)
    want = attention_matrix(q, k) @ groups.double()
    torch.testing.assert_close(attention_group_mass(q, k, groups).double(), want, rtol=0, atol=1e-6)


def test_no_tensor_has_all_rows_by_all_columns() -> None:
    q, k, groups = randn(2000, 2, 8).float(), randn(2000, 1, 8).float(), one_hot(2000, 3)
    assert largest_tensor(lambda: attention_group_mass(q, k, groups)) <= 2 * 2000 * 8


def test_rotary_positions_turn_queries_and_keys() -> None:
    mixer = backbone(QWEN2).layers[2].mixer
    x = randn(1, 30, 32)
    q, k = projected(mixer, x, Rotary.of(QWEN2, [5], (30,), x))
    for proj, found in ((mixer.q_proj, q), (mixer.k_proj, k)):
        want = turned(proj(x[0]).unflatten(-1, (-1, 8)).detach(), 100.0, start=5)
        torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.tensor([3]), r"rows must lie in 6 .. 9, got 3 .. 3"),
        (torch.tensor([7.0]), r"rows must be a tensor \(r,\) of int64, got \(1,\) torch.float32"),
    ],
)
def test_rows_without_a_query_are_refused(rows, words) -> None:
    with pytest.raises(ValueError, match=words):
        list(attention_rows(randn(4, 2, 8), randn(10, 1, 8), rows))
