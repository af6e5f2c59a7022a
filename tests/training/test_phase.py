"""One optimizer step: the mean over all supervised tokens, clipped, at the schedule's rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.training.common import CONFIG, Pictures, run_of, samples, tiny
from timeviper_fast.errors import DataError
from timeviper_fast.training.packed import PackedModel
from timeviper_fast.training.parallel import World
from timeviper_fast.training.phase import PhaseRun
from timeviper_fast.training.stream import StepStream


def phase_run(tmp_path, model, **changes):
    run = run_of(tmp_path)
    phase = replace(run.phases[1], keep=None, selection_loss=0.0, warmup=0.0, **changes)
    world = World(0, 1, torch.device("cpu"))
    stream = StepStream.of_phase(run, phase, 2, {"pictures": Pictures()}, CONFIG, world)
    return PhaseRun(run, phase, model, stream, tmp_path, world)


def test_packs_of_a_step_count_by_their_supervised_tokens(tmp_path):
    """A step accumulated over two packs equals the step on one pack with all samples."""
    given = samples()
    weights = []
    for packs in ([given[:1], given[1:]], [given]):
        run = phase_run(tmp_path, tiny(torch.float64), learning_rate=1e-2)
        run.take_step(packs)
        weights.append(run.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_the_gradient_is_clipped(tmp_path, clip):
    run = phase_run(tmp_path, tiny(), clip=clip)
    norms = []
    step = run.optimizer.step

    def noted():
        gradients = [p.grad.flatten() for p in run.wrapper.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        step()

    run.optimizer.step = noted
    run.take_step([samples()])
    alone = PackedModel(tiny())
    result = alone(samples())
    (result.loss / len(result.predicted.targets)).backward()
    expected = float(torch.cat([p.grad.flatten() for p in alone.parameters()]).norm())
    assert expected > 0.1
    assert norms == [pytest.approx(clip or expected, rel=1e-3)]


def test_a_pack_of_which_nothing_can_be_read_changes_nothing(tmp_path):
    with_hole, without = (phase_run(tmp_path, tiny()) for _ in range(2))
    with_hole.take_step([samples(), []])
    without.take_step([samples()])
    for name, value in without.model.state_dict().items():
        assert torch.equal(value, with_hole.model.state_dict()[name]), name


def test_a_first_pack_without_samples_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no sample of the first pack can be read"):
        phase_run(tmp_path, tiny()).take_step([[]])


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("dead", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_ends_the_run_before_anything_is_saved(tmp_path, clip, dead):
    run = phase_run(tmp_path, tiny(), clip=clip, learning_rate=1e-5)
    run.take_step([samples()])
    run.step = 1
    with torch.no_grad():
        run.model.backbone.norm_f.weight.fill_(dead)
    run.take_step([samples()])
    run.step = 2
    sentence = "phase 'tuning', step 2: loss and gradient norm must be finite, got nan and nan"
    for then in (run.save, lambda: run.take_step([samples()])):
        with pytest.raises(ValueError, match=sentence):
            then()
    assert not list(tmp_path.glob("*step-*"))


def test_a_gradient_that_overflows_ends_the_run_too(tmp_path):
    run = phase_run(tmp_path, tiny(), clip=0.0)
    weight = run.model.projector.layers[0].weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    run.take_step([samples()])
    run.step = 1
    with pytest.raises(ValueError, match=r"step 1: .* must be finite, got \d"):
        run.save()


def test_keep_follows_the_schedule(tmp_path):
    run = run_of(tmp_path)
    world = World(0, 1, torch.device("cpu"))
    stream = StepStream.of_phase(run, run.phases[1], 2, {"pictures": Pictures()}, CONFIG, world)
    phase = PhaseRun(run, run.phases[1], tiny(), stream, tmp_path, world)
    kept = []
    for step in range(6):
        phase.step = step
        phase.take_step([samples()[:1]])
        kept.append([stage.keep for stage in phase.model.config.stages])
    assert kept[0] == [1.0, 1.0]
    assert kept[-1] == [0.5, 0.25]
    assert kept == sorted(kept, reverse=True)
