"""Blocks of rows give what the whole gives."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.analysis.rows import block_of, row_sums

WEIGHTS = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0)).double().tril()
GROUPS = torch.eye(3).repeat(4, 1)


def blocks(size: int):
    for rows in torch.arange(12).split(size):
        yield rows, WEIGHTS[:, rows]


@pytest.mark.parametrize("size", [1, 5, 12])
def test_sums_profiles_and_maps_do_not_depend_on_the_blocks(size: int) -> None:
    found = row_sums(blocks(size), GROUPS, 3, window=2, maps=[2])
    torch.testing.assert_close(found.absolute, WEIGHTS.abs() @ GROUPS.double())
    assert found.maps[2].equal(WEIGHTS[2].float())
    whole = row_sums(blocks(12), GROUPS, 3, window=2).profile
    torch.testing.assert_close(found.profile.sparsity, whole.sparsity)
    assert found.profile.rows.tolist() == [10, 10, 10]


def test_no_rows_give_empty_sums() -> None:
    found = row_sums([], GROUPS, 3, maps=[0])
    assert found.absolute.shape == (3, 0, 3)
    assert found.maps[0].shape == (0, 12)


def test_a_block_holds_a_bounded_number_of_weights() -> None:
    assert block_of(2**20) == 16
    assert block_of(2**30) == 1


def test_a_head_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row_sums: maps must name heads 0 .. 2, got \[3\]"):
        row_sums(blocks(4), GROUPS, 3, maps=[3])
