"""SigLIP in other projects' words: identifiers, configurations, names of weights."""

from __future__ import annotations

import pytest

from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.checkpoint.siglip import vision_config_from_hf, vision_names
from timeviper_fast.checkpoint.upstream import (
    vision_from_upstream,
)
from timeviper_fast.config import (
    VisionConfig,
)


@pytest.mark.parametrize(
    ("name", "patches", "width", "block"),
    [
        ("siglip-vit-so400m-384px", 729, 1152, 25),
        ("siglip-vit-so400m", 256, 1152, 25),
        ("siglip-vit-b16-224px", 196, 768, 10),
        ("siglip-vit-b16-256px", 256, 768, 10),
        ("siglip-vit-b16-384px", 576, 768, 10),
    ],
)
def test_vision_ids(name, patches, width, block):
    config = vision_from_upstream(name)
    assert (config.patches_per_frame, config.hidden_size) == (patches, width)
    assert (config.num_blocks - 1, config.hidden_act) == (block, "gelu")


def test_vision_ids_that_are_not_built():
    for name in ("dinosiglip-vit-so-384px", "siglip-vit-so400m+dinov2-vit-l"):
        words = r"must be one of siglip-vit-so400m-384px.*two encoders at once are not built"
        with pytest.raises(NotImplementedError, match=words):
            vision_from_upstream(name)
    with pytest.raises(ValueError, match=r"vision_backbone_id must be one of .*got 'clip'"):
        vision_from_upstream("clip")


def test_siglip_configs():
    from transformers import SiglipConfig, SiglipVisionConfig

    tower = SiglipVisionConfig(hidden_size=32, num_attention_heads=2, image_size=28, patch_size=7)
    config = vision_config_from_hf(tower.to_dict())
    assert (config.hidden_size, config.patches_per_frame, config.intermediate_size) == (
        32,
        16,
        3072,
    )
    assert config.hidden_act == "gelu_pytorch_tanh"
    whole = SiglipConfig(vision_config=tower.to_dict()).to_dict()
    assert vision_config_from_hf(whole) == config
    assert vision_config_from_hf(tower.to_dict() | {"hidden_act": "gelu"}).hidden_act == "gelu"
    with pytest.raises(ValueError, match=r"model_type must be 'siglip' or .*got 'clip'"):
        vision_config_from_hf({"model_type": "clip"})
    with pytest.raises(ValueError, match="vision_config must be an object with fields, got None"):
        vision_config_from_hf({"model_type": "siglip", "vision_config": None})


SMALL = VisionConfig(num_hidden_layers=4, feature_layer=-2)


@pytest.mark.parametrize(
    ("key", "piece"),
    [
        ("pos_embed", Piece("pos_embed")),
        ("patch_embed.proj.bias", Piece("patch_embed.proj.bias")),
        ("blocks.2.attn.qkv.bias", Piece("blocks.2.attn.qkv.bias")),
        ("embeddings.position_embedding.weight", Piece("pos_embed")),
        ("embeddings.patch_embedding.weight", Piece("patch_embed.proj.weight")),
        ("encoder.layers.0.layer_norm2.bias", Piece("blocks.0.norm2.bias")),
        ("encoder.layers.1.self_attn.out_proj.weight", Piece("blocks.1.attn.proj.weight")),
        ("encoder.layers.1.self_attn.q_proj.bias", Piece("blocks.1.attn.qkv.bias", put=(0, 3))),
        ("encoder.layers.1.self_attn.k_proj.bias", Piece("blocks.1.attn.qkv.bias", put=(1, 3))),
        ("encoder.layers.1.self_attn.v_proj.bias", Piece("blocks.1.attn.qkv.bias", put=(2, 3))),
        ("encoder.layers.2.mlp.fc2.weight", Piece("blocks.2.mlp.fc2.weight")),
    ],
)
def test_vision_names(key, piece):
    names = vision_names(SMALL)
    assert names(key) == names(f"vision_model.{key}") == (piece,)


def test_vision_names_that_go_nowhere():
    names = vision_names(SMALL)
    for key in (
        "blocks.3.norm1.weight",
        "vision_model.encoder.layers.3.mlp.fc1.bias",
        "norm.weight",
        "attn_pool.latent",
        "vision_model.post_layernorm.bias",
        "vision_model.head.probe",
        "text_model.embeddings.token_embedding.weight",
        "logit_scale",
    ):
        assert names(key) == ()
    # a deeper network is another network, so this name is unknown and not an unused layer
    assert names("blocks.4.norm1.weight") == (Piece("blocks.4.norm1.weight"),)
    for key in ("cls_token", "blocks.0.ls1.gamma", "encoder.layers.x.y"):
        assert names(key) is None
