"""Parameter groups, frozen parts, and the learning rate's schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.training.common import tiny
from timeviper_fast.training.optimizer import (
    PARTS,
    freeze_all_but,
    learning_rate_factor,
    parameter_groups,
    part_of,
)


def test_every_parameter_belongs_to_a_part_and_only_named_parts_learn():
    model = tiny()
    assert {part_of(name) for name, _ in model.named_parameters()} == set(PARTS)
    freeze_all_but(model, ("projector", "transv"))
    learning = {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"projector", "transv"}


def test_only_matrices_decay():
    model = tiny()
    groups = parameter_groups(model, dict.fromkeys(PARTS, 1e-3), weight_decay=0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed = {names[p] for group in groups if group["weight_decay"] for p in group["params"]}
    kept = {names[p] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert decayed | kept == set(names.values())
    assert len(decayed) + len(kept) == sum(len(group["params"]) for group in groups)
    ends = {name.rpartition("mixer.")[2] for name in kept if "mixer." in name}
    assert ends == {"A_log", "D", "dt_bias", "conv1d.weight", "conv1d.bias", "norm.weight"}
    assert {"vision.pos_embed", "backbone.transv.0.alpha"} <= kept
    assert {"backbone.embeddings.weight", "backbone.layers.0.mixer.in_proj.weight"} <= decayed


def test_each_part_has_its_rate():
    rates = {"vision": 1e-6, "projector": 1e-4, "llm": 1e-5, "transv": 5e-5}
    for group in parameter_groups(tiny(), rates, 0.01):
        assert group["lr"] == group["peak"] == rates[group["name"].partition(",")[0]]


def test_a_part_that_learns_needs_a_rate():
    with pytest.raises(ValueError, match="learning_rates must have one for vision"):
        parameter_groups(tiny(), {"llm": 1e-5}, 0.01)


def test_the_rate_rises_and_falls_along_a_cosine():
    factors = [learning_rate_factor(step, 100, 0.1, 0.2) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.2 + 0.8 * 0.5)
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert 0.2 < factors[-1] < 0.201
    assert learning_rate_factor(0, 1, 0.03) == 1
