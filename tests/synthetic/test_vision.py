"""The encoder learns from true labels only, and a continued run equals an uninterrupted one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from timeviper_fast.model.vision.vit import VisionTransformer
from timeviper_fast.presets import preset
from timeviper_fast.synthetic.lessons import IGNORE, Lesson
from timeviper_fast.synthetic.vision import (
    Mix,
    Reader,
    VisionPlan,
    VisionTrainer,
    measure,
    pretrain_vision,
    reading_loss,
    saved_reader,
)

TRAINED = preset("tiny-trained")
SMALL = replace(
    TRAINED,
    vision=replace(
        TRAINED.vision,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    ),
)
PLAN = VisionPlan(steps=6, batch=8, warmup=2)


@pytest.fixture(autouse=True)
def _one_thread():
    """Run on one thread: with small matrices, threads spend most time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shuffled(trainer):
    """Let the trainer learn from the labels of other frames."""
    draw = trainer.batch

    def batch():
        pixels, labels = draw()
        return Lesson(pixels, labels.roll(1, 0))

    trainer.batch = batch


@pytest.mark.parametrize("true", [True, False], ids=["true labels", "shuffled labels"])
def test_a_hundred_steps_teach_kinds(true):
    """The loss starts near 12. From shuffled labels only the share of each kind is learnt: 10.3."""
    plan = VisionPlan(steps=300, batch=48, learning_rate=8e-3, warmup=10, hard=0.0)
    trainer = VisionTrainer(SMALL, plan)
    if not true:
        shuffled(trainer)
    losses = [trainer.train_step() for _ in range(110)]
    errors = measure(trainer.averaged, "study", 96)
    learnt = sum(losses[-20:]) / 20 < 9.7 and errors["kind"] < 0.4 and errors["false"] < 0.6
    assert learnt is true, (losses[-20:], errors)


def test_the_loss_is_the_sum_of_each_heads_mean():
    """Two frames with two tokens each; the second frame has a kind only."""
    logits = {name: torch.randn(2, 2, n) for name, n in (("kind", 6), ("first", 24))}
    labels = torch.tensor([[5, 3], [0, IGNORE]])
    kind = -torch.log_softmax(logits["kind"], -1)
    first = -torch.log_softmax(logits["first"], -1)
    expected = (kind[0, :, 5].sum() + kind[1, :, 0].sum()) / 4 + first[0, :, 3].mean()
    torch.testing.assert_close(reading_loss(logits, labels), expected)


def test_plain_frames_may_weigh_more():
    logits = {"kind": torch.randn(2, 1, 6)}
    nats = -torch.log_softmax(logits["kind"][:, 0], -1)
    expected = (nats[0, 3] + 4 * nats[1, 0]) / 5
    weighed = reading_loss(logits, torch.tensor([[3], [0]]), plain=4.0)
    torch.testing.assert_close(weighed, expected)


def test_no_label_gives_no_loss():
    logits = {"first": torch.randn(2, 2, 24)}
    assert reading_loss(logits, torch.full((2, 1), IGNORE)) == 0


def run(folder, **options):
    return list(pretrain_vision(SMALL, PLAN, folder, measure_frames=4, **options))


def test_a_continued_run_equals_an_uninterrupted_one(tmp_path):
    lines = run(tmp_path / "whole", measure_steps=2)
    part = pretrain_vision(
        SMALL, PLAN, tmp_path / "parts", save_seconds=0, measure_steps=2, measure_frames=4
    )
    # step 4 is measured, but not saved yet
    assert [next(part), next(part)] == lines[:2]
    part.close()
    assert len((tmp_path / "parts/log.jsonl").read_text().splitlines()) == 1
    assert run(tmp_path / "parts", measure_steps=2) == lines[1:]
    for name in ("log.jsonl", "vision.safetensors"):
        whole, parts = (tmp_path / folder / name for folder in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes(), name
    assert not list(tmp_path.rglob("*.partial"))


def test_the_folder_holds_an_encoder_and_its_curves(tmp_path):
    from safetensors.torch import load_file

    (line,) = run(tmp_path)
    assert line["step"] == 6
    assert set(line["study"]) == {"kind", "first", "second", "colour", "false"}
    assert [json.loads(text) for text in (tmp_path / "log.jsonl").open()] == [line]
    vision = VisionTransformer(SMALL.vision)
    vision.load_state_dict(load_file(tmp_path / "vision.safetensors"))
    assert run(tmp_path) == []
    assert measure(saved_reader(SMALL, tmp_path), "study", 4) == line["study"]


def test_another_plan_does_not_continue_a_run(tmp_path):
    run(tmp_path)
    with pytest.raises(
        ValueError, match=r"plan must be that of the saved run \(seed=0\), got seed=1$"
    ):
        next(pretrain_vision(SMALL, replace(PLAN, seed=1), tmp_path))
    with pytest.raises(ValueError, match="pretrain_vision: vision must be that of the saved run"):
        next(pretrain_vision(TRAINED, PLAN, tmp_path))


def test_a_run_that_is_older_than_a_field_of_the_encoder_continues(tmp_path):
    """The field has its default in such a run."""
    run(tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["vision"]["clip_frames"]
    torch.save(state, tmp_path / "state.pt")
    assert run(tmp_path) == []


def test_the_rate_rises_and_falls_along_a_cosine():
    plan = VisionPlan(steps=1000, warmup=100, learning_rate=1.0)
    assert plan.rate(0) == pytest.approx(0.01)
    assert plan.rate(99) == pytest.approx(1.0)
    assert plan.rate(550) == pytest.approx(0.51)
    assert plan.rate(1000) == pytest.approx(0.02)


def test_later_steps_see_more_frames_without_a_needle():
    plan = VisionPlan(batch=200, mixes=(Mix(0, 0.1, 0.0), Mix(3, 0.9, 1.0)))
    trainer, shares = VisionTrainer(SMALL, plan), []
    for trainer.step in (2, 3):
        shares.append((trainer.batch().labels[:, 0] == 0).float().mean().item())
    assert shares[0] < 0.2
    assert shares[1] > 0.8


def test_measuring_counts_tokens_and_frames():
    """A reader that predicts a star for each token is wrong on all frames without a star."""
    reader = Reader(SMALL)
    for parameter in reader.heads.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        reader.heads.bias[2] = 1.0
    errors = measure(reader, "study", 300)
    assert errors["false"] == 1.0
    assert 0.85 < errors["kind"] < 0.97
    assert 0.9 < errors["first"] <= 1.0
