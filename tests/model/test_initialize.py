"""Random weights as the family initialises them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.tiny import TINY, TRANSV
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.nemotron_h import HybridBackbone, Mamba2


@pytest.fixture(scope="module")
def model() -> HybridBackbone:
    made = HybridBackbone(TINY, TRANSV)
    init_weights(made, seed=5)
    return made.requires_grad_(False)


def test_a_seed_gives_the_same_weights_and_another_seed_other_ones(model):
    again, other = HybridBackbone(TINY, TRANSV), HybridBackbone(TINY, TRANSV)
    init_weights(again, seed=5)
    init_weights(other, seed=6)
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_mamba_parameters_lie_in_their_ranges(model):
    mixers = [module for module in model.modules() if isinstance(module, Mamba2)]
    assert len(mixers) == TINY.pattern.count("M")
    for mixer in mixers:
        decay = mixer.A_log.exp()
        assert float(decay.min()) >= 1
        assert float(decay.max()) <= 16
        dt = F.softplus(mixer.dt_bias)
        low = max(TINY.time_step_min, TINY.time_step_floor)
        assert float(dt.min()) >= low * (1 - 1e-4)
        assert float(dt.max()) <= TINY.time_step_max * (1 + 1e-4)
        assert bool((mixer.D == 1).all())


def test_matrices_have_the_spread_of_their_width_and_gates_start_closed(model):
    weight = model.lm_head.weight
    assert float(weight.std()) * math.sqrt(TINY.hidden_size) == pytest.approx(1, rel=0.1)
    assert float(model.embeddings.weight.std()) == pytest.approx(1, rel=0.1)
    assert [float(stage.alpha) for stage in model.transv] == [0, 0]
