"""Training of the tiny model: its output, its exact continuation, and what a short run learns.

`missed` is the bar: what `timeviper-fast train-tiny --steps 250` must have learnt. A whole run takes
less than a minute of one thread. Runs with wrong labels or a wrong gradient must miss the bar.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from timeviper_fast.model import nemotron_h
from timeviper_fast.model.vision import blocks
from timeviper_fast.synthetic import kinds, tiny
from timeviper_fast.synthetic.lessons import Lesson
from timeviper_fast.synthetic.pool import PoolSize
from timeviper_fast.synthetic.source import SyntheticSource
from timeviper_fast.synthetic.tiny import TinyPlan, train_tiny
from timeviper_fast.synthetic.vision import VisionTrainer
from timeviper_fast.timeviper import TimeViper

STEPS = 250


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """One thread, and no pools of other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "_POOLS", {})
        yield
    torch.set_num_threads(threads)


def plan(steps=2):
    """Two short phases with short videos."""
    whole = TinyPlan.short(steps)
    phases = tuple(
        replace(p, steps=steps, frames=(8, 16), tokens_per_pack=200) for p in whole.phases
    )
    pool = PoolSize(16, signs=1, shapes=5, links=1)
    return replace(whole, vision=replace(whole.vision, batch=8), phases=phases, pool=pool)


class Stopped(Exception):
    pass


def stop(_line):
    raise Stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run's model."""
    return train_tiny(tmp_path_factory.mktemp("whole"), plan())


def test_a_model_is_left_that_loads_in_half_precision_and_answers(whole):
    assert whole.name == "model"
    stored = load_file(whole / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    model = TimeViper.from_pretrained(whole)
    assert [stage.keep for stage in model.config.stages] == [0.5, 0.25]
    video = torch.zeros(8, 48, 48, 3, dtype=torch.uint8)
    assert model.ask(video, "What does the sign say?", max_new_tokens=2).token_ids


def test_a_run_that_stops_continues_to_the_same_weights(whole, tmp_path):
    for stopped_by in ({"on_vision": stop}, {"progress": stop}):
        with pytest.raises(Stopped):
            train_tiny(tmp_path, plan(), **stopped_by)
    continued = train_tiny(tmp_path, plan()) / "model.safetensors"
    assert continued.read_bytes() == (whole / "model.safetensors").read_bytes()


def test_another_plan_does_not_continue_in_its_folder(whole):
    with pytest.raises(ValueError, match="plan must be that of the saved run"):
        train_tiny(whole.parent, plan(steps=3))


def test_steps_bound_every_part():
    short = TinyPlan.short(30)
    assert short.vision.steps == 30
    assert [phase.steps for phase in short.phases] == [30, 3]
    assert TinyPlan.short(1).phases[1].steps == 1
    assert short.pool.plain >= max(phase.frames[1] for phase in short.phases)
    with pytest.raises(ValueError, match="steps must be an integer above 0, got 0"):
        TinyPlan.short(0)


def test_the_whole_plan_draws_both_levels_and_all_tasks_from_whole_pools():
    sources = [tiny._source(level, TinyPlan(seed=5)) for level in ("study", "hard")]
    assert [(s.options["level"], s.options["seed"]) for s in sources] == [("study", 6), ("hard", 7)]
    assert {**kinds.OPTIONS, **sources[0].options}["tasks"] == ["sign", "colour", "chain", "count"]
    assert sources[0].options["plain"] == 12_000


# what a short run learns


# {figure: (sign, bound)}; the encoder's share of wrong tokens, and what the language model reaches
BAR = {
    "kind": ("<", 0.3),
    "colour": ("<", 0.38),
    "false": ("<", 0.25),
    "loss": ("<", 0.165),
    "token_accuracy": (">", 0.93),
    "sample_accuracy": (">", 0.3),
}


def missed(folder: Path) -> set[str]:
    """The figures of a run of STEPS steps that miss the bar; none if it has learnt.

    Guessing is wrong for the kind in 59 % and for the colour in 88 % of all tokens. The answer
    "star red" is right by chance in 11 %, although 92 % of its tokens (letters and the end) are.
    All figures are of frames or videos that were not seen before: the encoder's of another world,
    the language model's of the last 50 steps of a phase, and each step draws new videos.
    """
    study = json.loads((folder / "vision/log.jsonl").read_text().splitlines()[-1])["study"]
    lines = map(json.loads, (folder / "language/metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if line["phase"] == "shortest"][-5:]
    figures = {name: study[name] for name in ("kind", "colour", "false")}
    for name in ("loss", "token_accuracy", "sample_accuracy"):
        figures[name] = sum(line[name] for line in last) / len(last)
    print(figures)
    sides = {"<": lambda a, b: a < b, ">": lambda a, b: a > b}
    return {name for name, (sign, bound) in BAR.items() if not sides[sign](figures[name], bound)}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """The model of an uninterrupted run of STEPS steps."""
    return train_tiny(tmp_path_factory.mktemp("learnt"), TinyPlan.short(STEPS))


def test_a_short_run_learns(learnt):
    assert not missed(learnt.parent)


def test_a_short_run_that_is_stopped_twice_equals_itself(learnt, tmp_path, monkeypatch):
    """Once in the middle of the encoder and once in the middle of the language model."""
    step = VisionTrainer.train_step

    def stop_halfway(trainer):
        if trainer.step == STEPS // 2:
            raise Stopped
        return step(trainer)

    def stop_later(at):
        # behind a snapshot, which is saved each STEPS // 4 steps
        if (at.phase, at.step) == ("shortest", STEPS // 20 * 10):
            raise Stopped

    short = TinyPlan.short(STEPS)
    monkeypatch.setattr(tiny, "pretrain_vision", partial(tiny.pretrain_vision, save_seconds=1))
    with monkeypatch.context() as patch:
        patch.setattr(VisionTrainer, "train_step", stop_halfway)
        with pytest.raises(Stopped):
            train_tiny(tmp_path, short)
    with pytest.raises(Stopped):
        train_tiny(tmp_path, short, progress=stop_later)
    train_tiny(tmp_path, short)
    for name in ("vision/log.jsonl", "vision/vision.safetensors", "model/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (learnt.parent / name).read_bytes(), name


def bend(patch, kind, factor):
    """Multiply the gradient of all modules of a kind by `factor`, in what comes out of them."""
    forward = kind.forward

    def bent(module, *given):
        out = forward(module, *given)
        if out.requires_grad:
            out.register_hook(lambda gradient: factor * gradient)
        return out

    patch.setattr(kind, "forward", bent)


def shuffle_lessons(patch):
    """The encoder learns the labels of other frames."""
    draw = VisionTrainer.batch

    def batch(trainer):
        pixels, labels = draw(trainer)
        return Lesson(pixels, labels.roll(1, 0))

    patch.setattr(VisionTrainer, "batch", batch)


def shuffle_answers(patch):
    """The language model learns the answers of other videos."""
    draw = SyntheticSource.puzzle

    def puzzle(source, at):
        own, other = draw(source, at), draw(source, replace(at, seed=at.seed + 1))
        questions = [
            replace(question, answer=another.answer)
            for question, another in zip(own.questions, other.questions)
        ]
        return replace(own, questions=tuple(questions))

    patch.setattr(SyntheticSource, "puzzle", puzzle)


ENCODER = {
    "labels of other frames": shuffle_lessons,
    "attention's gradient is 0": lambda patch: bend(patch, blocks.Attention, 0.0),
    "the MLP's gradient has the wrong sign": lambda patch: bend(patch, blocks.Mlp, -1.0),
}
# Not among them: a gradient of 0 in attention or in the scan alone, where the other kind of layer
# learns to read videos of four frames, and a wrong one in the projector, whose initial weights will
# do. Finite differences test every gradient (tests/training/test_packed.py).
LANGUAGE = {
    "answers of other videos": shuffle_answers,
    "the scan's gradient has the wrong sign": lambda patch: bend(patch, nemotron_h.Mamba2, -1.0),
    "the MLP's gradient has the wrong sign": lambda patch: bend(patch, nemotron_h.Mlp, -1.0),
}


@pytest.mark.long
@pytest.mark.parametrize("broken", ENCODER)
def test_a_broken_encoder_misses_the_bar(learnt, tmp_path, monkeypatch, broken):
    """The language model's part is that of the sound run."""
    ENCODER[broken](monkeypatch)
    shutil.copytree(learnt.parent / "language", tmp_path / "language")
    for _ in tiny.pretrain_vision(
        TimeViper.from_pretrained(learnt).config,
        TinyPlan.short(STEPS).vision,
        tmp_path / "vision",
        measure_frames=256,
    ):
        pass
    assert missed(tmp_path) & {"kind", "colour"}


@pytest.mark.long
@pytest.mark.parametrize("broken", LANGUAGE)
def test_a_broken_language_model_misses_the_bar(learnt, tmp_path, monkeypatch, broken):
    """The encoder is that of the sound run."""
    LANGUAGE[broken](monkeypatch)
    shutil.copytree(learnt.parent / "vision", tmp_path / "vision")
    train_tiny(tmp_path, TinyPlan.short(STEPS))
    assert "sample_accuracy" in missed(tmp_path)
