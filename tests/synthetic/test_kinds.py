"""The world as a source of a training run: options, pools that phases share, and pixels for an encoder that learns."""

from __future__ import annotations

import pytest
import torch

from timeviper_fast.dataset.sample import Draw, Limits
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.synthetic import kinds
from timeviper_fast.synthetic.kinds import check_synthetic, synthetic_source
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.training.config import SourceConfig
from timeviper_fast.training.kinds import Setting


@pytest.fixture(scope="module")
def model():
    made = TimeViper(preset("tiny-trained"), byte_tokenizer())
    init_weights(made, seed=0, for_training=True)
    return made


@pytest.fixture(autouse=True)
def _no_pools(monkeypatch):
    monkeypatch.setattr(kinds, "_POOLS", {})


def build(model, tmp_path, learns_vision=False, **options):
    options = {"plain": 20, "signs": 1, "shapes": 5, "links": 1, **options}
    table = SourceConfig("study", "synthetic", options)
    return synthetic_source(table, Setting(model, tmp_path, "raise", learns_vision))


def test_a_frozen_encoder_gives_features_of_a_pool_that_is_made_once(model, tmp_path):
    first, second = (build(model, tmp_path).limits(Limits(4, 8)) for _ in range(2))
    (pool,) = kinds._POOLS.values()
    assert len(pool.features) == 20 + 240 + 5 * 24 + 792
    samples = [source.load(0, Draw(0, 0, 7)) for source in (first, second)]
    assert samples[0].features.shape[1:] == (4, 64)
    assert torch.equal(samples[0].features, samples[1].features)


def test_an_encoder_that_learns_gets_pixels(model, tmp_path):
    sample = build(model, tmp_path, learns_vision=True).limits(Limits(4, 8)).load(0, Draw(0, 0, 7))
    assert sample.pixels.shape[1:] == (3, 48, 48)
    assert not kinds._POOLS


def test_tasks_are_those_asked_for(model, tmp_path):
    source = build(model, tmp_path, tasks=["sign"], learns_vision=True)
    asked = {source.puzzle(Draw(0, 0, seed)).questions[0].task for seed in range(20)}
    assert asked == {"sign"}


def test_an_unknown_option_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="source 'study': size must be one of level, seed"):
        build(model, tmp_path, size=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"absent": "x"}, "absent must lie in .* got 'x'"),
        ({"held_out": 3}, "held_out must be True or False, got 3"),
        ({"tasks": "sign"}, "tasks must be a list of some of sign, .* got 'sign'"),
        ({"level": "hart"}, "level must be one of study, hard, got 'hart'"),
        ({"plain": 2.5}, "plain must be a positive integer"),
    ],
)
def test_an_option_of_a_wrong_type_is_refused(options, message):
    table = SourceConfig("study", "synthetic", options)
    with pytest.raises(ValueError, match=f"source 'study': {message}"):
        check_synthetic(table, preset("tiny-trained"), Limits())


def test_a_picture_size_that_the_world_does_not_have_is_refused():
    table = SourceConfig("study", "synthetic")
    with pytest.raises(ValueError, match=r"source 'study': image_size must be 48, .* got 96"):
        check_synthetic(table, preset("tiny-trained"), Limits(image_size=96))
