"""A pool gives each frame the features of a picture with the right needle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from timeviper_fast.config import ProjectorConfig
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.model.projector import Projector
from timeviper_fast.model.vision.build import build_encoder
from timeviper_fast.presets import preset
from timeviper_fast.synthetic import pool as pool_module
from timeviper_fast.synthetic.lessons import to_pixels
from timeviper_fast.synthetic.needle import KINDS, Needle
from timeviper_fast.synthetic.pool import FramePool, PoolSize, every_needle
from timeviper_fast.synthetic.world import World


def small_pool(plain=40, copies=2):
    """A pool whose features are the frames' indices."""
    places, count = {}, plain
    for needle in every_needle():
        places[needle] = (count, copies)
        count += copies
    numbers = torch.arange(count, dtype=torch.float32)
    return FramePool(numbers.view(-1, 1, 1).repeat(1, 4, 8), plain, places)


def numbers_of(features):
    return features[:, 0, 0].long().tolist()


def test_every_needle_is_there_once():
    needles = every_needle()
    assert len(set(needles)) == len(needles) == 240 + 24 + 792
    assert {needle.kind for needle in needles} == set(KINDS[1:])


def test_videos_show_what_they_should_and_no_frame_twice():
    pool = small_pool()
    shown = {3: Needle("sign", "K7"), 8: Needle("link", "KM"), 11: Needle("link", "MK")}
    shown |= {5: Needle("star", colour="red"), 30: Needle("star", colour="red")}
    for seed in range(20):
        numbers = numbers_of(pool.draw(40, shown, seed))
        assert len(set(numbers)) == 40
        for i, number in enumerate(numbers):
            first, count = pool.places[shown[i]] if i in shown else (0, pool.plain)
            assert first <= number < first + count
    assert numbers_of(pool.draw(40, shown, 1)) == numbers_of(pool.draw(40, shown, 1))
    assert numbers_of(pool.draw(40, shown, 1)) != numbers_of(pool.draw(40, shown, 2))


def test_features_are_those_of_the_worlds_frames(monkeypatch):
    """Needle and plain frames have the features of the rendered pictures; other seeds differ."""
    needles = [Needle("sign", "K7"), Needle("ring", colour="blue"), Needle("link", "KM")]
    monkeypatch.setattr(pool_module, "every_needle", lambda: needles)
    model = TimeViperNetwork(preset("tiny-trained"))
    init_weights(model, seed=0)
    size = PoolSize(plain=5, signs=2, shapes=3, links=4)
    pool, other = (
        FramePool.encode(World(seed), model.vision, model.projector, size) for seed in (3, 4)
    )
    assert pool.places == dict(zip(needles, [(5, 2), (7, 3), (10, 4)]))
    shown = [None] * 5 + [needles[0]] * 2 + [needles[1]] * 3 + [needles[2]] * 4
    frames = to_pixels(World(3).render(33 * np.arange(14), shown))
    with torch.no_grad():
        expected = model.projector.merge(model.vision(frames))
    torch.testing.assert_close(pool.features.float(), expected, rtol=1e-3, atol=1e-3)
    assert (pool.features != other.features).flatten(1).any(1).all()


def test_frames_are_not_encoded_in_clips():
    clips = Projector(ProjectorConfig(clip_frames=4), 64, 8)
    vision = build_encoder(preset("tiny-trained").vision)
    with pytest.raises(
        ValueError, match="frames per clip must be 1 in encoder and projector, got 4"
    ):
        FramePool.encode(World(3), vision, clips)


def test_sizes_count_copies():
    size = PoolSize(plain=5, signs=2, shapes=3, links=4)
    needles = (Needle("sign", "K7"), Needle("heart", colour="red"), Needle("link", "KM"))
    assert [size.copies(needle) for needle in needles] == [2, 3, 4]


@pytest.mark.parametrize(
    ("frames", "shown", "sentence"),
    [
        (41, {}, "FramePool: frames must be at most its 40 plain frames, got 41"),
        (9, {i: Needle("sign", "K7") for i in range(3)}, "at most 2 times, got 3"),
    ],
)
def test_too_few_frames_are_an_error(frames, shown, sentence):
    with pytest.raises(ValueError) as error:
        small_pool().draw(frames, shown, 0)
    assert sentence in str(error.value)
