"""Evaluation: the same samples each time, without gradients, for any number of processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.training.common import Pictures, run_of, tiny
from timeviper_fast.training.config import EvaluationConfig
from timeviper_fast.training.evaluate import evaluate
from timeviper_fast.training.figures import figures_of, sums_of
from timeviper_fast.training.packed import PackedModel
from timeviper_fast.training.parallel import World
from timeviper_fast.training.phase import PhaseRun
from timeviper_fast.training.stream import StepStream


def phase_run(tmp_path):
    run = run_of(tmp_path)
    model, world = tiny(), World(0, 1, torch.device("cpu"))
    sources = {"pictures": Pictures()}
    stream = StepStream.of_phase(run, run.phases[1], 2, sources, model.config, world)
    return PhaseRun(run, run.phases[1], model, stream, tmp_path, world)


def test_it_is_the_mean_over_the_drawn_samples(tmp_path):
    run, settings = phase_run(tmp_path), EvaluationConfig({"pictures": 1.0}, samples=4)
    seen = []

    class Spied(Pictures):
        def load(self, index, draw):
            seen.append(super().load(index, draw))
            return seen[-1]

    figures = evaluate(run, {"pictures": Spied()}, settings, seed=3)
    assert len(seen) == 4
    with torch.no_grad():
        alone = PackedModel(tiny(), run.phase.selection_loss)
        expected = figures_of(sum(sums_of(alone([sample])) for sample in seen))
    assert figures == pytest.approx(expected)
    assert evaluate(run, {"pictures": Pictures()}, settings, seed=3) == figures
    assert run.wrapper.training


def test_a_process_takes_its_share_and_runs_as_often_as_the_others(tmp_path):
    settings = EvaluationConfig({"pictures": 1.0}, samples=3)
    whole = evaluate(phase_run(tmp_path), {"pictures": Pictures()}, settings, seed=3)
    shares, calls = [], []
    for rank in (0, 1):
        run = phase_run(tmp_path)
        summed: list[torch.Tensor] = []
        run.world = SimpleNamespace(
            rank=rank,
            size=2,
            device=torch.device("cpu"),
            total=lambda sums, kept=summed: kept.append(sums) or sums,
        )
        run.wrapper.register_forward_hook(lambda *_given, rank=rank: calls.append(rank))
        evaluate(run, {"pictures": Pictures()}, settings, seed=3)
        shares += summed
    assert calls.count(0) == calls.count(1) == 2
    assert figures_of(shares[0] + shares[1]) == pytest.approx(whole)
