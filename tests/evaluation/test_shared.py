"""Questions that share a video get the same answers as when each is asked alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.evaluation.common import random_model
from timeviper_fast.config import CompressionStage
from timeviper_fast.evaluation.shared import SharedVideo, asking_stage
from timeviper_fast.inference.generate import decode, prefill

BEFORE = [1, 2, 3, 4]
QUESTIONS = ([5, 6, 7, 8, 9], [10, 11, 12], [13])


def answers(backbone, read):
    return [int(token) for token in decode(backbone, read, max_new_tokens=3)]


def alone(model, visual, after):
    ids = [torch.tensor([BEFORE]), torch.tensor([after])]
    embeddings, segment = model.embed(ids[0], visual, ids[1])
    return prefill(model.backbone, embeddings, segment, max_new_tokens=3)


def same(model, frames=60, chunk=None):
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(frames, 4, 128, generator=generator)
    shared = SharedVideo(model, BEFORE, visual, room=20, chunk=chunk)
    for after in QUESTIONS:
        got, wanted = shared.read(after), alone(model, visual, after)
        # float32 sums in another order
        assert (got.logits - wanted.logits).norm() < 2e-6 * wanted.logits.norm()
        assert torch.equal(got.kept, wanted.kept)
        assert (got.stages, got.lengths) == (wanted.stages, wanted.lengths)
        assert answers(model.backbone, got) == answers(model.backbone, wanted)


@pytest.mark.parametrize("name", ["tiny-trained", "tiny"])
def test_shared_is_alone(name):
    """`tiny` has an attention layer below its asking stage; the questions share its keys."""
    same(random_model(name))


@pytest.mark.parametrize(
    "change",
    [
        lambda stages: (),
        lambda stages: stages[1:],
        lambda stages: stages[:1],
        lambda stages: (stages[0], replace(stages[1], select="uniform")),
        lambda stages: tuple(replace(stage, keep=1.0) for stage in stages),
        lambda stages: tuple(replace(stage, transfer=False) for stage in stages),
        lambda stages: (replace(stages[0], select="attention"), stages[1]),
    ],
    ids=["none", "asking", "uniform", "two uniform", "keep all", "no transfer", "two asking"],
)
def test_with_any_stages(change):
    model = random_model("tiny")
    stages = (CompressionStage(3, "uniform", 0.5, transfer=False), model.config.stages[1])
    model.set_stages(change(stages))
    same(model, frames=30, chunk=37)


def test_the_transfer_matters_here():
    """Without it the answers differ, so the tests above see it."""
    model = random_model()
    visual = torch.randn(50, 4, 128, generator=torch.Generator().manual_seed(1))
    told = SharedVideo(model, BEFORE, visual, 20).read(QUESTIONS[0]).logits
    model.set_stages(tuple(replace(stage, transfer=False) for stage in model.config.stages))
    untold = SharedVideo(model, BEFORE, visual, 20).read(QUESTIONS[0]).logits
    assert (told - untold).abs().max() > 1e-3


def test_the_asking_stage():
    uniform, asking = CompressionStage(2, "uniform", 0.5), CompressionStage(3, "attention", 0.1)
    assert asking_stage((uniform, asking, asking)) == 1
    assert asking_stage((uniform, uniform)) == 2
    assert asking_stage(()) == 0


def test_what_does_not_fit_is_refused():
    model = random_model()
    shared = SharedVideo(model, BEFORE, torch.randn(40, 4, 128), room=4)
    with pytest.raises(ValueError, match="tokens must"):
        shared.read([1, 2, 3, 4, 5])
