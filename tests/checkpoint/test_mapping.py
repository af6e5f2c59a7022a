"""Names of the whole model's weights, under every prefix, find their parameters."""

from __future__ import annotations

from tests.checkpoint.common import expected_names
from tests.checkpoint.test_siglip import SMALL
from tests.goldens import golden
from tests.tiny import TINY, TRANSV
from timeviper_fast.checkpoint.mapping import Piece, own_names, under
from timeviper_fast.checkpoint.siglip import vision_names
from timeviper_fast.checkpoint.upstream import (
    projector_names,
    vlm_names,
)
from timeviper_fast.config import (
    TimeViperConfig,
)


def test_full_prefixes_of_the_whole_model():
    prefix = "grad."
    keys = [k.removeprefix(prefix) for k in golden("packed_training") if k.startswith(prefix)]
    keys = [key for key in keys if key != "fused_embeddings"]
    names = vlm_names(TimeViperConfig(backbone=TINY, stages=TRANSV))
    got = {piece.name for key in keys for piece in names(key)}
    known = {f"backbone.{name}" for name in expected_names(TRANSV)}
    known |= {f"projector.layers.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")}
    assert len(keys) == 21
    assert got <= known
    assert {"backbone.transv.1.alpha", "projector.layers.2.bias", "backbone.lm_head.weight"} <= got
    for key in keys:
        assert names("module." + key) == names(key)


def test_projector_and_own_names():
    assert projector_names("projector.4.weight") == (Piece("layers.4.weight"),)
    assert projector_names("projectors.siglip.projector.0.weight") is None
    for name in golden("tome_odd51_fused"):
        if name.startswith("weight."):
            (piece,) = projector_names(name.removeprefix("weight."))
            assert piece.name == name.replace("weight.projector", "layers")
    assert own_names("vision.pos_embed") == (Piece("vision.pos_embed"),)
    assert under("vision.", vision_names(SMALL))("norm.weight") == ()
    assert under("vision.", vision_names(SMALL))("cls_token") is None


def test_names_of_other_encoders_are_not_expected():
    names = vlm_names(TimeViperConfig())
    for key in (
        "vision_backbone.featurizer.vision_tower.pos_embed",
        "projector.projectors.siglip.projector.0.weight",
        "optimizer.step",
    ):
        assert names(key) is None
