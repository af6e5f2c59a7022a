"""Cached features equal the encoder's; damaged entries are encoded again; keys never collide."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.dataset.common import turns
from tests.tiny import CONFIG
from timeviper_fast.config import ProjectorConfig
from timeviper_fast.dataset import features
from timeviper_fast.dataset.features import FeatureCache, encode_features
from timeviper_fast.dataset.sample import Sample
from timeviper_fast.errors import ArgumentError
from timeviper_fast.model.fingerprint import vision_fingerprint
from timeviper_fast.model.model import TimeViperNetwork

TALK = turns("What?", "That.")


@pytest.fixture(scope="module")
def model() -> TimeViperNetwork:
    torch.manual_seed(0)
    clips = replace(CONFIG, projector=ProjectorConfig(num_tokens=4, clip_frames=2))
    return TimeViperNetwork(clips).eval()


def test_features_are_those_that_the_model_would_project(model: TimeViperNetwork) -> None:
    pixels = torch.randn(6, 3, 28, 28)
    sample = Sample(TALK, pixels)
    merged = encode_features(model, sample)
    assert torch.equal(model.projector.project(merged), model.encode(pixels))
    with pytest.raises(ArgumentError, match="sample must have pixels"):
        encode_features(model, Sample(TALK))


def test_parts_are_encoded_one_by_one_in_batches_of_whole_clips(
    model: TimeViperNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch size may change rounding, and a part must have the same features in every sample."""
    pixels, batches = torch.randn(10, 3, 28, 28), []
    monkeypatch.setattr(features, "_BATCH", 5)
    hook = model.vision.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    joined = encode_features(model, Sample(TALK, pixels, parts=(("a", 2), ("b", 8))))
    alone = [encode_features(model, Sample(TALK, part)) for part in pixels.split([2, 8])]
    hook.remove()
    assert batches == [2, 4, 4, 2, 4, 4]
    assert torch.equal(joined, torch.cat(alone))


def test_a_part_of_one_frame_is_an_image() -> None:
    """It has as many tokens as a clip of two frames here."""
    made = replace(CONFIG, projector=ProjectorConfig("tome_mlp", 4, 2, image_tokens=8))
    model, pixels = TimeViperNetwork(made).eval(), torch.randn(1, 3, 28, 28)
    merged = encode_features(model, Sample(TALK, pixels))
    assert merged.shape == (1, 8, 32)
    assert torch.equal(model.projector.project(merged), model.encode(pixels, images=True))


def test_completed_samples_are_read_back(tmp_path: Path, model: TimeViperNetwork) -> None:
    cache = FeatureCache(tmp_path, vision_fingerprint(model))
    assert cache.read("ab") is None
    sample = Sample(TALK, torch.randn(6, 3, 28, 28), parts=(("ab", 4), ("cd", 2)), name="x")
    full = cache.complete(model, sample)
    assert (full.pixels, full.frames, full.name) == (None, 6, "x")
    for key, part in zip(("ab", "cd"), full.features.split([4, 2])):
        kept = cache.read(key)
        assert kept.dtype == part.dtype
        assert torch.equal(kept, part)
    assert cache.complete(model, full) is full
    assert cache.complete(model, Sample(TALK)).frames == 0
    assert not list(tmp_path.rglob(".*"))


def test_bfloat16_stays(tmp_path: Path) -> None:
    cache, kept = FeatureCache(tmp_path, "m"), torch.randn(2, 3, 4).bfloat16()
    cache.write("ab", kept)
    assert torch.equal(cache.read("ab"), kept)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign"])
def test_a_damaged_entry_is_encoded_again(tmp_path: Path, damage: str) -> None:
    cache, kept = FeatureCache(tmp_path, "m"), torch.randn(2, 3, 4)
    cache.write("ab", kept)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    bad = {"empty": b"", "cut": whole[:-4], "flipped": flipped, "foreign": b"no tensors at all"}
    path.write_bytes(bad[damage])
    with pytest.warns(UserWarning, match=r"ab\.safetensors: it is encoded again, for "):
        assert cache.read("ab") is None
    cache.write("ab", kept)
    assert torch.equal(cache.read("ab"), kept)


def test_a_key_is_of_all_that_features_depend_on(tmp_path: Path, model: TimeViperNetwork) -> None:
    film = tmp_path / "a.mp4"
    film.write_bytes(b"x")
    cache = FeatureCache(tmp_path, "m")
    keys = [
        cache.key(film, [0, 1], 28),
        cache.key(film, [0, 2], 28),
        cache.key(film, [0, 1], 56),
        FeatureCache(tmp_path, "n").key(film, [0, 1], 28),
    ]
    os.utime(film, (1, 1))
    keys.append(cache.key(film, [0, 1], 28))
    assert len(set(keys)) == 5
    assert cache.key(film, [0, 1], 28) == keys[-1]


def test_a_models_key_is_of_weights_settings_and_dtype(model: TimeViperNetwork) -> None:
    torch.manual_seed(0)
    same = TimeViperNetwork(model.config)
    assert vision_fingerprint(same) == vision_fingerprint(model)
    torch.nn.init.normal_(same.projector.layers[0].weight)
    assert vision_fingerprint(same) == vision_fingerprint(
        model
    )  # the projector comes after the features
    torch.manual_seed(0)
    others = [TimeViperNetwork(CONFIG), TimeViperNetwork(model.config).bfloat16()]
    with torch.no_grad():
        same.vision.pos_embed[0, 0, 0] += 1
    assert len({vision_fingerprint(each) for each in (model, same, *others)}) == 4
