"""Blocks have exactly their size, whatever comes, and keep nothing of a caller's buffer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timeviper_fast.inference.rows import Grid, Rows, RowStore


def rows(start: int, stop: int) -> Rows:
    numbers = torch.arange(start, stop)
    return Rows(numbers[None, :, None].float(), numbers)


@given(size=st.integers(1, 9), pushes=st.lists(st.integers(0, 25), max_size=8))
def test_a_grid_gives_blocks_of_its_size_in_order(size: int, pushes: list[int]) -> None:
    grid, blocks, done = Grid(size), [], 0
    for push in pushes:
        blocks += list(grid.push(rows(done, done + push)))
        done += push
    assert all(len(block) == size for block in blocks)
    blocks += list(grid.rest())
    assert torch.cat([torch.empty(0), *(b.hidden[0, :, 0] for b in blocks)]).tolist() == list(
        range(done)
    )
    assert [n for b in blocks for n in b.source.tolist()] == list(range(done))
    assert grid.count == 0


def test_a_grid_without_size_gives_all_at_the_end() -> None:
    grid = Grid(None)
    assert list(grid.push(rows(0, 500))) == []
    [block] = grid.rest()
    assert len(block) == 500


def test_what_waits_is_a_copy_and_a_fork_waits_apart() -> None:
    grid, given_rows = Grid(8), rows(0, 5)
    list(grid.push(given_rows))
    given_rows.hidden.zero_()
    fork = grid.fork()
    [block] = fork.push(rows(5, 8))
    assert block.hidden[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert (grid.count, fork.count) == (5, 0)


@pytest.mark.parametrize("growing", [False, True])
def test_a_store_holds_rows_in_order_and_its_fork_writes_elsewhere(growing: bool) -> None:
    store = RowStore(3 if growing else 12, torch.empty(4, 1), 1, growing)
    store.append(rows(0, 3))
    store.append(rows(3, 7))
    fork = store.fork()
    fork.append(rows(100, 103))
    store.append(rows(7, 12))
    [part] = store.parts
    assert part.hidden[0, :, 0].tolist() == part.source.tolist() == list(range(12))
    first, second = fork.parts
    assert first.source.tolist() == list(range(7))
    assert second.hidden[0, :, 0].tolist() == [100, 101, 102]
