"""Each control changes the right setting, and the model is restored afterwards."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from tests.evaluation.common import random_model
from timeviper_fast.config import CompressionStage
from timeviper_fast.evaluation.controls import CONTROLS, variants, with_variant

UNIFORM = CompressionStage(2, "uniform", 0.5)
ASKING = CompressionStage(3, "attention", 0.1, score="normed")


def test_each_keep_value_and_each_control():
    found = variants((UNIFORM, ASKING), (0.1, 0.01), tuple(CONTROLS))
    names = [(way.control, way.keep) for way in found]
    assert names == [
        *(("none", 0.1), ("none", 0.01), ("blind", 0.1), ("blind", 0.01), ("no-video", 1.0)),
        *(("needle-only", 1.0), ("uniform", 0.1), ("uniform", 0.01), ("raw", 0.1), ("raw", 0.01)),
        *(("normed", 0.1), ("normed", 0.01), ("no-transfer", 0.1), ("no-transfer", 0.01)),
    ]
    ways = dict(zip(names, found))
    assert ways["none", 0.01].stages[1].keep == 0.01
    assert ways["none", 0.01].stages[0] == UNIFORM
    assert ways["uniform", 0.1].stages[1] == CompressionStage(3, "uniform", 0.1, score="normed")
    assert ways["raw", 0.1].stages[1].score == "raw"
    assert [stage.keep for stage in ways["needle-only", 1.0].stages] == [1.0, 1.0]
    assert str(ways["uniform", 0.01]) == "keep 0.01, uniform"
    assert str(ways["none", 0.1]) == "keep 0.1"


def test_needles_alone_lose_no_token_to_a_content_stage():
    content = CompressionStage(0, "content", 1.0, transfer=False, prune=0.7, match="best")
    alone = variants((content, ASKING), (), ("needle-only",))[1]
    assert [(stage.keep, stage.prune) for stage in alone.stages] == [(1.0, 0.0), (1.0, 0.0)]


def test_the_models_own_keep():
    (own,) = variants((UNIFORM, ASKING), (), ())
    assert (own.control, own.keep, own.stages) == ("none", 0.1, (UNIFORM, ASKING))
    (bare,) = variants((), (), ())
    assert (bare.keep, bare.stages) == (1.0, ())


@pytest.mark.parametrize(
    ("stages", "keeps", "controls", "match"),
    [
        ((ASKING,), (), ("deaf",), "controls must be some of blind, no-video, .*got 'deaf'"),
        ((UNIFORM,), (), ("uniform",), "controls must not change an attention stage"),
        ((replace(UNIFORM, transfer=False),), (), ("no-transfer",), "controls must not turn off"),
        ((UNIFORM,), (0.1,), (), "keeps must be left out for a model without exactly one"),
        ((ASKING, ASKING), (0.1,), (), "keeps must be left out for a model without exactly one"),
    ],
)
def test_what_makes_no_sense_is_refused(stages, keeps, controls, match):
    with pytest.raises(ValueError, match=match):
        variants(stages, keeps, controls)


def test_the_model_gets_its_stages_back():
    model = random_model()
    own = model.backbone.stages
    for way in variants(own, (0.01,), ("uniform", "needle-only")):
        with suppress(RuntimeError), with_variant(model, way):
            assert model.backbone.stages == way.stages
            raise RuntimeError
        assert model.backbone.stages == model.config.stages == own


def test_without_transfer_the_gates_are_closed_and_the_kept_tokens_are_the_same():
    model = random_model()
    own = model.backbone.stages
    with torch.no_grad():
        for module in model.backbone.transv:
            module.alpha.fill_(0.75)
    (_, way) = variants(own, (), ("no-transfer",))
    assert way.stages == own
    with suppress(RuntimeError), with_variant(model, way):
        assert [module.alpha.item() for module in model.backbone.transv] == [0.0, 0.0]
        raise RuntimeError
    assert [module.alpha.item() for module in model.backbone.transv] == [0.75, 0.75]
