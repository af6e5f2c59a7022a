"""The cache: a full one says so, and its bytes are what the shapes say."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.model.cache import AttentionState, HybridCache
from timeviper_fast.model.mamba_state import MambaState
from timeviper_fast.presets import preset


def test_a_full_cache_says_so_and_writes_nothing():
    state = AttentionState((1, 3, 2, 4), None, torch.float32)
    key = torch.ones(1, 2, 2, 4)
    state.append(key, key)
    before = state.key.clone()
    with pytest.raises(ValueError, match="tokens must fit its capacity of 3, got 4"):
        state.append(2 * key, 2 * key)
    assert (state.longest, state.lengths.tolist()) == (2, [2])
    assert torch.equal(state.key[:, :2], before[:, :2])


def test_cache_bytes_are_what_the_shapes_say():
    config = preset("nemotron-nano-9b-v2").backbone
    cache = HybridCache(config, [1000] * 56, device="meta", dtype=torch.bfloat16)
    mamba = 27 * (128 * 80 * 128 * 4 + 12288 * 4 * 2 + 4)
    attention = 4 * 2 * 1000 * 8 * 128 * 2
    assert cache.nbytes == mamba + attention


def filled(length: int, growing: bool = False) -> AttentionState:
    state = AttentionState((1, 2, 2, 4), None, torch.float32, growing=growing)
    for token in range(length):
        state.append(*(torch.full((1, 1, 2, 4), float(token)) for _ in range(2)))
    return state


def test_a_growing_state_doubles_and_keeps_what_is_written():
    state = filled(9, growing=True)
    assert state.key.shape[1] == 16
    assert state.written[0][0, :, 0, 0].tolist() == list(range(9))


def test_a_fork_writes_nothing_of_its_origin():
    state = filled(5, growing=True)
    fork = state.fork(3, 4)
    fork.append(*(torch.full((3, 2, 2, 4), -1.0) for _ in range(2)))
    deeper = fork.fork(3, 1)
    deeper.append(*(torch.full((3, 1, 2, 4), -2.0) for _ in range(2)))
    state.append(*(torch.full((1, 1, 2, 4), 5.0) for _ in range(2)))
    assert state.written[0][0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert fork.written[0][2, :, 0, 0].tolist() == [-1, -1]
    assert deeper.written[1][1, :, 0, 0].tolist() == [-1, -1, -2]
    assert deeper.everything[0].shape[1] == 8


def test_a_mamba_state_is_copied_for_each_row():
    config = preset("tiny").backbone
    state = MambaState(1, config, None, torch.float32)
    state.push_conv(torch.randn(1, config.conv_dim, 7))
    state.position += 3
    fork = state.fork(2)
    assert torch.equal(fork.conv, state.conv.expand(2, -1, -1))
    assert fork.ring.stride() == state.ring.stride()
    fork.row(1).ssm.fill_(7)
    fork.row(1).position.add_(1)
    assert (state.ssm == 0).all()
    assert (fork.ssm[1] == 7).all()
    assert (fork.ssm[0] == 0).all()
    assert (state.position.tolist(), fork.position.tolist()) == ([3], [3, 4])


def test_splitting_costs_no_copy_and_joins_again():
    state = AttentionState((1, 8, 2, 4), None, torch.float32)
    state.append(torch.ones(1, 3, 2, 4), torch.ones(1, 3, 2, 4))
    tail = state.split()
    tail.append(torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4))
    whole = tail.joined()
    assert whole.key.data_ptr() == state.key.data_ptr()
    assert whole.written[0][0, :, 0, 0].tolist() == [1, 1, 1, 0, 0]
    assert whole.lengths.tolist() == [5]
