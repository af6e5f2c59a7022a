"""The packs of each step: the same for any number of processes, and continued exactly."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.training.common import CONFIG, Pictures, run_of
from timeviper_fast.dataset.sample import Cost
from timeviper_fast.training.parallel import World
from timeviper_fast.training.stream import StepStream, tokens_per_layer


def stream(rank=0, size=1, packs=2):
    run = run_of("unused")
    phase = replace(run.phases[1], packs_per_step=packs)
    world = World(rank, size, torch.device("cpu"))
    sources = {"pictures": Pictures()}
    return StepStream.of_phase(run, phase, 2, sources, CONFIG, world)


def names(steps):
    return [[[sample.name for sample in pack] for pack in packs] for packs in steps]


def test_processes_take_the_packs_that_one_would_take():
    alone = names(stream().steps(0, 5))
    first, second = (names(stream(rank, 2).steps(0, 5)) for rank in (0, 1))
    assert [a + b for a, b in zip(first, second)] == alone


def test_the_state_behind_a_step_continues_with_the_next_one():
    whole = names(stream().steps(0, 6))
    begun = stream()
    steps = begun.steps(0, 6)
    for _ in range(3):
        next(steps)
    state = begun.state_dict()
    # the state also fits another number of processes
    for size in (1, 2):
        continued = stream(0, size)
        continued.load_state_dict(state)
        expected = [packs[::size] for packs in whole[3:]]
        assert names(continued.steps(3, 6)) == expected


def test_what_reaches_the_layers_is_counted():
    """4 layers; 10 frames of 4 tokens: all before layer 1, half before layer 2, then a quarter."""
    cost = Cost(frames=10, text=7)
    assert tokens_per_layer(CONFIG, cost) == -(-(47 + 27 + 17 + 17) // 4)
    assert tokens_per_layer(CONFIG, Cost(0, 7)) == 7


def test_packs_are_planned_for_the_step_that_keeps_most():
    """The phase first keeps all tokens: three samples of 60 + 8 to 16 tokens fit into 250."""
    counts = [len(pack) for packs in stream().steps(0, 8) for pack in packs]
    assert max(counts) == 3
