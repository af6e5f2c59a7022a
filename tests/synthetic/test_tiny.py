"""Training of the tiny model in a few steps: its output, and its exact continuation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from timeviper_fast.synthetic import kinds
from timeviper_fast.synthetic.pool import PoolSize
from timeviper_fast.synthetic.tiny import TinyPlan, train_tiny
from timeviper_fast.timeviper import TimeViper


@pytest.fixture(autouse=True, scope="module")
def _small():
    """One thread, and small pools."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "PoolSize", lambda plain: PoolSize(plain, 1, 5, 1))
        patch.setattr(kinds, "_POOLS", {})
        yield
    torch.set_num_threads(threads)


def plan(steps=2):
    """Two short phases with short videos."""
    whole = TinyPlan.short(steps)
    phases = tuple(replace(p, frames=(8, 16), tokens_per_pack=200) for p in whole.phases[1:3])
    return replace(whole, vision=replace(whole.vision, batch=8), phases=phases, plain=16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run's model."""
    return train_tiny(tmp_path_factory.mktemp("whole"), plan())


def test_a_model_is_left_that_loads_in_half_precision_and_answers(whole):
    assert whole.name == "model"
    stored = load_file(whole / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    model = TimeViper.from_pretrained(whole)
    assert [stage.keep for stage in model.config.stages] == [0.5, 0.1]
    video = torch.zeros(8, 48, 48, 3, dtype=torch.uint8)
    assert model.ask(video, "What does the sign say?", max_new_tokens=2).token_ids


def test_a_run_that_stops_continues_to_the_same_weights(whole, tmp_path):
    class Stopped(Exception):
        pass

    def stop(_line):
        raise Stopped

    for stopped_by in ({"on_vision": stop}, {"progress": stop}):
        with pytest.raises(Stopped):
            train_tiny(tmp_path, plan(), **stopped_by)
    continued = load_file(train_tiny(tmp_path, plan()) / "model.safetensors")
    expected = load_file(whole / "model.safetensors")
    assert all(torch.equal(value, continued[name]) for name, value in expected.items())


def test_another_plan_does_not_continue_in_its_folder(whole):
    with pytest.raises(ValueError, match="plan must be that of the saved run"):
        train_tiny(whole.parent, plan(steps=3))


def test_steps_bound_every_part():
    short = TinyPlan.short(3)
    assert short.vision.steps == 3
    assert {phase.steps for phase in short.phases} == {3}
    assert short.plain >= max(phase.frames[1] for phase in short.phases)
    with pytest.raises(ValueError, match="steps must be an integer above 0, got 0"):
        TinyPlan.short(0)
