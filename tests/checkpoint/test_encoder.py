"""Every kind of encoder has its table of names, and upstream's ids name them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.model.encoders import tower_config, tower_weights
from timeviper_fast.checkpoint.encoder import encoder_names
from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.checkpoint.upstream import vision_from_upstream
from timeviper_fast.checkpoint.weights import Source, load_weights
from timeviper_fast.model.vision.build import build_encoder
from timeviper_fast.presets import VISION_PRESETS


@pytest.mark.parametrize("name", VISION_PRESETS)
def test_ids(name):
    config = vision_from_upstream(name)
    assert config == VISION_PRESETS[name]
    proj = "patch_embed.proj.weight"
    assert encoder_names(config)(proj) == (Piece(proj),)


@pytest.mark.parametrize("kind", ["umt", "internvideo2"])
def test_a_file_of_weights_fills_an_encoder_built_on_the_meta_device(kind, tmp_path):
    config, weights = tower_config(kind), tower_weights(kind)
    save_file(weights, tmp_path / "encoder.safetensors")
    with torch.device("meta"):
        model = build_encoder(config)
    load_weights(model, Source(tmp_path / "encoder.safetensors", encoder_names(config)))
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    truth = build_encoder(config)
    truth.load_state_dict(weights)
    pixels = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(pixels), truth(pixels))
