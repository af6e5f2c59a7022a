"""C-RADIO's names in the files of NVIDIA's hybrid models."""

from __future__ import annotations

import pytest

from tests.goldens import golden
from tests.model.test_radio import recorded_config
from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.checkpoint.radio import radio_names
from timeviper_fast.model.vision.radio import RADIO

PREFIX = "vision_model.radio_model."


def test_the_recorded_names_fill_the_model() -> None:
    config = recorded_config()
    names = radio_names(config)
    stored = {k.removeprefix(PREFIX) for k in golden("nemotron_vl_encoder") if k.startswith(PREFIX)}
    found = [piece.name for key in stored for piece in names(key)]
    assert sorted(found) == sorted(RADIO(config).state_dict())


@pytest.mark.parametrize(
    ("key", "pieces"),
    [
        ("model.patch_generator.cls_token.token", (Piece("prefix"),)),
        ("model.patch_generator.video_embedder.weight", (Piece("video_embed.proj.weight"),)),
        ("input_conditioner.norm_mean", ()),
        ("summary_idxs", ()),
        # nothing computes with these: a file that holds them is another model
        ("model.norm.weight", None),
        ("model.blocks.0.ls1.gamma", None),
        ("patch_generator.pos_embed", None),
    ],
)
def test_names(key: str, pieces: tuple[Piece, ...] | None) -> None:
    assert radio_names(recorded_config())(key) == pieces
