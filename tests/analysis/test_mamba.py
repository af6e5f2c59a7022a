"""Sums and chosen rows of Mamba-2's hidden attention against the whole matrix in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.analysis.dense import backbone, mamba_matrix, randn
from tests.analysis.test_attention import one_hot
from tests.contract import on_device
from tests.footprint import largest_tensor
from timeviper_fast.analysis.mamba import (
    ScanWeights,
    mamba_group_sums,
    mamba_rows,
    scan_weights,
)
from timeviper_fast.model.stack import Packing
from tvkernels import mamba_chunk_scan_combined


def weights_of(n: int, heads: int = 4, groups: int = 2, states: int = 6) -> ScanWeights:
    dt = randn(n, heads, seed=1).exp() * 0.1
    A, shape = -randn(heads, seed=2).exp(), (n, groups, states)
    B, C = randn(*shape, seed=3), randn(*shape, seed=4)
    return ScanWeights(dt, A, B, C)


@pytest.mark.parametrize("with_dt", [True, False])
@pytest.mark.parametrize("n", [1, 70])
def test_sums_and_rows_equal_the_matrix(n: int, with_dt: bool) -> None:
    weights, groups = weights_of(n), one_hot(n, 3)
    M = mamba_matrix(*weights, with_dt=with_dt)
    sums = mamba_group_sums(weights, groups, 16, with_dt=with_dt)
    torch.testing.assert_close(sums, M @ groups.double(), rtol=0, atol=1e-12)
    rows = torch.arange(0, n, 3)
    found = torch.cat([w for _, w in mamba_rows(weights, rows, with_dt=with_dt)], dim=1)
    torch.testing.assert_close(found, M[:, rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 4])
def test_backends_sum_one_hot_values(backend: str, count: int) -> None:
    """The scan's head is as wide as there are groups, which is narrow for a kernel."""
    weights = ScanWeights(*(on_device(x.float()) for x in weights_of(40, states=16)))
    groups = on_device(one_hot(40, count))
    for with_dt in (True, False):
        want = mamba_matrix(*(x.cpu() for x in weights), with_dt=with_dt) @ groups.cpu().double()
        sums = mamba_group_sums(weights, groups, 16, with_dt=with_dt).cpu()
        torch.testing.assert_close(sums, want.float(), rtol=1e-4, atol=1e-5)


def test_the_matrix_is_that_of_the_scan() -> None:
    """y = M x + D x, so that what is measured is what the layer computes."""
    weights, x, D = weights_of(50), randn(50, 4, 5, seed=7), randn(4, seed=8)
    dt, A, B, C = weights
    y = mamba_chunk_scan_combined(x[None], dt[None], A, B[None], C[None], 16, D=D)[0]
    want = torch.einsum("hij,jhp->ihp", mamba_matrix(*weights), x) + D[:, None] * x
    torch.testing.assert_close(y, want, rtol=0, atol=1e-12)


def test_weights_are_those_of_the_layer() -> None:
    """The layer's output is made again from its matrix."""
    model = backbone()
    mixer, u = model.layers[0].mixer, randn(1, 40, 80)
    weights = scan_weights(mixer, u)
    z, xBC, _ = mixer.in_proj(u).split(mixer.widths, dim=-1)
    padded = torch.nn.functional.pad(xBC[0].T, (3, 0))
    mixed = torch.nn.functional.conv1d(
        padded[None], mixer.conv1d.weight, mixer.conv1d.bias, groups=padded.shape[0]
    )[0]
    x = torch.nn.functional.silu(mixed).T[:, : model.config.d_inner].unflatten(-1, (8, 20))
    y = torch.einsum("hij,jhp->ihp", mamba_matrix(*weights), x) + mixer.D[:, None] * x
    gated = (y.flatten(1) * torch.nn.functional.silu(z[0])).unflatten(-1, (2, -1))
    normed = gated / (gated.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
    want = mixer.out_proj(normed.flatten(1) * mixer.norm.weight)
    got = mixer(u, Packing((40,), None), None)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@given(
    n=st.integers(1, 60),
    groups=st.integers(1, 9),
    share=st.integers(1, 3),
    with_dt=st.booleans(),
)
def test_sums_over_all_groups_are_the_row_sums(n, groups, share, with_dt) -> None:
    weights = weights_of(n, 2 * share)
    indicator = one_hot(n, groups)
    each = mamba_group_sums(weights, indicator, 16, with_dt=with_dt)
    joined = indicator[:, ::2].sum(1, keepdim=True)
    some = mamba_group_sums(weights, joined, 16, with_dt=with_dt)[..., 0]
    torch.testing.assert_close(some, each[..., ::2].sum(-1), rtol=0, atol=1e-11)
    split = each.sum(-1)
    whole = mamba_group_sums(weights, torch.ones(n, 1), 16, with_dt=with_dt)[..., 0]
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-11)
    (_, rows), *rest = mamba_rows(weights, torch.arange(n), with_dt=with_dt)
    assert not rest
    torch.testing.assert_close(rows.sum(-1), whole, rtol=0, atol=1e-11)


def test_a_step_of_zero_passes_the_decay_and_keeps_upstreams_weight() -> None:
    """dt underflows to 0: with dt the token has no weight, without dt it has C . B."""
    weights = weights_of(12)
    weights.dt[5] = 0
    for with_dt in (True, False):
        M = mamba_matrix(*weights, with_dt=with_dt)
        sums = mamba_group_sums(weights, torch.eye(12), 16, with_dt=with_dt)
        torch.testing.assert_close(sums, M, rtol=0, atol=1e-11)
        assert M[:, 8, 5].any() != with_dt


def test_decays_of_float32_weights_are_summed_in_float64() -> None:
    """20,000 steps of log-decay 0.1 each: in float32 the running sum 2,000 has steps of 1.2e-4."""
    n = 20_000
    ones = torch.ones(n, 1, 1)
    weights = ScanWeights(torch.full((n, 1), 0.1), -torch.ones(1), ones, ones)
    ((_, row),) = mamba_rows(weights, torch.tensor([n - 1]), with_dt=False)
    want = torch.exp(-0.1 * torch.arange(3.0).double())
    torch.testing.assert_close(row[0, 0, -3:].flip(0), want, rtol=1e-7, atol=0)


def test_no_tensor_has_all_rows_by_all_columns() -> None:
    weights = ScanWeights(*(x.float() for x in weights_of(3000)))
    assert largest_tensor(lambda: mamba_group_sums(weights, one_hot(3000, 3), 16)) < 3000 * 500


def test_rows_that_are_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mamba_rows: rows must lie in 0 .. 9, got 10 .. 10"):
        list(mamba_rows(weights_of(10), torch.tensor([10])))
