"""UMT's names of weights: VideoChat-Flash's, and those of the encoder's own files."""

from __future__ import annotations

import pytest

from tests.goldens import golden
from tests.model.encoders import CHECKPOINT, tower_config
from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.checkpoint.umt import umt_names
from timeviper_fast.model.vision.umt import UMT
from timeviper_fast.presets import VISION_PRESETS


def test_every_recorded_name_has_its_own_place():
    names, model = umt_names(tower_config("umt")), UMT(tower_config("umt"))
    prefix = CHECKPOINT["umt"]
    stored = [key.removeprefix(prefix) for key in golden("vcf_umt_tower") if key.startswith(prefix)]
    found = [piece.name for key in stored for piece in names(key)]
    assert sorted(found) == sorted(model.state_dict())


@pytest.mark.parametrize(
    ("key", "pieces"),
    [
        ("encoder.norm.weight", (Piece("vision_layernorm.weight"),)),
        ("encoder.blocks.22.attn.q_bias", (Piece("blocks.22.attn.q_bias"),)),
        ("blocks.0.norm2.bias", (Piece("blocks.0.norm2.bias"),)),
        ("encoder.blocks.23.attn.q_bias", ()),
        ("encoder.blocks.0.attn.qkv.bias", None),
        ("encoder.pos_embed", None),
    ],
)
def test_names(key, pieces):
    """Block 23 of 24 lies behind the feature layer."""
    assert umt_names(VISION_PRESETS["umt-large"])(key) == pieces
