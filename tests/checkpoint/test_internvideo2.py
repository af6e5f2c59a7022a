"""InternVideo2's names of weights: the checkpoints', and those of the encoder's own files."""

from __future__ import annotations

import pytest

from tests.goldens import golden
from tests.model.encoders import CHECKPOINT, tower_config
from timeviper_fast.checkpoint.internvideo2 import internvideo2_names
from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.model.vision.internvideo2 import InternVideo2
from timeviper_fast.presets import VISION_PRESETS


def test_every_recorded_name_has_its_own_place():
    config, prefix = tower_config("internvideo2"), CHECKPOINT["internvideo2"]
    names, model = internvideo2_names(config), InternVideo2(config)
    stored = golden("vcf_internvideo2_tower")
    found = [
        piece.name
        for key in stored
        if key.startswith(prefix)
        for piece in names(key.removeprefix(prefix))
    ]
    assert sorted(found) == sorted(model.state_dict())


@pytest.mark.parametrize(
    ("key", "pieces"),
    [
        ("blocks.38.ls1.weight", (Piece("blocks.38.ls1.weight"),)),
        ("blocks.0.ls2.gamma", (Piece("blocks.0.ls2.weight"),)),
        ("blocks.39.norm1.weight", ()),
        ("blocks.0.attn.qkv.bias", None),
        ("clip_projector.norm1_q.weight", None),
    ],
)
def test_names(key, pieces):
    """Block 39 of 40 lies behind the feature layer."""
    assert internvideo2_names(VISION_PRESETS["internvideo2"])(key) == pieces
