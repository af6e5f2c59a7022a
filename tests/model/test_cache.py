"""The cache: a full one says so, and its bytes are what the shapes say."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.model.cache import AttentionState, HybridCache
from timeviper_fast.presets import preset


def test_a_full_cache_says_so_and_writes_nothing():
    state = AttentionState((1, 3, 2, 4), None, torch.float32)
    key = torch.ones(1, 2, 2, 4)
    state.append(key, key)
    before = state.key.clone()
    with pytest.raises(ValueError, match="tokens must fit its capacity of 3, got 4"):
        state.append(2 * key, 2 * key)
    assert state.length == 2
    assert torch.equal(state.key[:, :2], before[:, :2])


def test_cache_bytes_are_what_the_shapes_say():
    config = preset("nemotron-nano-9b-v2").backbone
    cache = HybridCache(config, [1000] * 56, device="meta", dtype=torch.bfloat16)
    mamba = 27 * (128 * 80 * 128 * 4 + 12288 * 4 * 2 + 4)
    attention = 4 * 2 * 1000 * 8 * 128 * 2
    assert cache.nbytes == mamba + attention
