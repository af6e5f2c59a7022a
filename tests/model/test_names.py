"""Other projects' words: every spelling is read, every mistake is named."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.model.goldens import DROP_ONLY, TINY, TRANSV, golden, manifest
from timeviper_fast.checkpoint.mapping import Piece, own_names, under
from timeviper_fast.checkpoint.nemotron_h import backbone_config_from_hf, llm_names
from timeviper_fast.checkpoint.siglip import vision_config_from_hf, vision_names
from timeviper_fast.checkpoint.upstream import (
    projector_from_upstream,
    projector_names,
    stages_from_hf,
    stages_from_upstream,
    vision_from_upstream,
    vlm_names,
)
from timeviper_fast.config import (
    BackboneConfig,
    CompressionStage,
    ProjectorConfig,
    TimeViperConfig,
    VisionConfig,
)
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import preset

PATTERN_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"

HF_9B = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "num_hidden_layers": 56,
    "hybrid_override_pattern": PATTERN_9B,
    "hidden_size": 4480,
    "intermediate_size": 15680,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 80,
    "expand": 2,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "chunk_size": 128,
    "vocab_size": 131072,
    "max_position_embeddings": 131072,
    "layer_norm_epsilon": 1e-5,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "mamba_proj_bias": False,
    "use_conv_bias": True,
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
    "residual_in_fp32": False,
    "tie_word_embeddings": False,
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "time_step_floor": 1e-4,
    "time_step_limit": [0.0, math.inf],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}
HF_12B = HF_9B | {
    "num_hidden_layers": 62,
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
    "hidden_size": 5120,
    "intermediate_size": 20480,
}
HF_8B = HF_9B | {
    "num_hidden_layers": 52,
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "mamba_head_dim": 64,
    "max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("hf", "name"),
    [(HF_9B, "nemotron-nano-9b-v2"), (HF_12B, "nemotron-nano-12b-v2"), (HF_8B, "nemotron-h-8b")],
)
def test_presets_are_what_the_checkpoints_say(hf, name):
    assert backbone_config_from_hf(hf) == preset(name).backbone
    through_json = json.loads(json.dumps(hf))
    assert backbone_config_from_hf(through_json) == preset(name).backbone


ALIASES = [
    ("n_groups", 4, ["n_groups", "mamba_n_groups", "mamba_num_groups"]),
    ("ssm_state_size", 64, ["ssm_state_size", "mamba_state_dim"]),
    ("conv_kernel", 3, ["conv_kernel", "mamba_d_conv"]),
    ("chunk_size", 32, ["chunk_size", "mamba_chunk_size"]),
    ("head_dim", 64, ["head_dim", "attention_head_dim"]),
    ("norm_eps", 1e-6, ["layer_norm_epsilon", "rms_norm_eps", "norm_eps"]),
    ("use_conv_bias", False, ["use_conv_bias", "mamba_conv_bias"]),
    ("mamba_proj_bias", True, ["use_bias", "mamba_proj_bias"]),
    ("time_step_limit", (0.01, 0.2), ["time_step_limit", "mamba_dt_limit"]),
    ("time_step_min", 0.002, ["time_step_min", "mamba_dt_min"]),
    ("time_step_max", 0.3, ["time_step_max", "mamba_dt_max"]),
    ("time_step_floor", 1e-3, ["time_step_floor", "mamba_dt_init_floor"]),
]


@pytest.mark.parametrize(("field", "value", "names"), ALIASES, ids=[a[0] for a in ALIASES])
def test_every_alias(field, value, names):
    stored = list(value) if isinstance(value, tuple) else value
    for name in names:
        config = backbone_config_from_hf({"hybrid_override_pattern": "M*-", name: stored})
        assert getattr(config, field) == value != getattr(BackboneConfig(), field)
    agreeing = dict.fromkeys(names, stored)
    config = backbone_config_from_hf({"hybrid_override_pattern": "M*-"} | agreeing)
    assert getattr(config, field) == value


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"n_groups": 8}, {"mamba_n_groups": 4}),
        ({"layer_norm_epsilon": 1e-5}, {"rms_norm_eps": 1e-6}),
        ({"use_bias": False}, {"mamba_proj_bias": True}),
        ({"time_step_limit": [0.0, "inf"]}, {"mamba_dt_limit": [0.001, "inf"]}),
        ({"hybrid_override_pattern": "M*-"}, {"layers_block_type": ["mamba", "mlp", "attention"]}),
    ],
)
def test_two_names_of_one_field_must_agree(first, second):
    (one,), (two,) = first, second
    with pytest.raises(ValueError, match=rf"{two} must equal {one} \(.*\), another name of the"):
        backbone_config_from_hf({"hybrid_override_pattern": "M*-"} | first | second)


@pytest.mark.parametrize("name", ["hybrid_override_pattern", "layers_block_type", "layer_types"])
@pytest.mark.parametrize(
    "layers",
    [
        "M*-M",
        ["M", "*", "-", "M"],
        ["mamba", "attention", "mlp", "mamba"],
        ["linear_attention", "full_attention", "mlp", "linear_attention"],
    ],
)
def test_spellings_of_the_pattern(name, layers):
    assert backbone_config_from_hf({name: layers}).pattern == "M*-M"


@pytest.mark.parametrize("top", [math.inf, "inf", "Infinity", {"__float__": "Infinity"}])
def test_spellings_of_infinity(top):
    config = backbone_config_from_hf({"layer_types": "M", "time_step_limit": [0, top]})
    assert config.time_step_limit == (0.0, math.inf)
    bare = json.loads('{"layer_types": "M", "mamba_dt_limit": [0.0, Infinity]}')
    assert backbone_config_from_hf(bare).time_step_limit == (0.0, math.inf)


def test_no_clamp_is_made_of_time_step_min():
    config = backbone_config_from_hf({"layer_types": "M", "time_step_min": 0.001})
    assert config.time_step_limit == (0.0, math.inf)
    assert config.time_step_min == 0.001


def test_a_missing_key_means_what_the_class_means(tmp_path):
    from transformers import NemotronHConfig

    NemotronHConfig(hybrid_override_pattern="M-M*").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    bare = {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*"}
    assert backbone_config_from_hf(bare) == backbone_config_from_hf(written)
    assert backbone_config_from_hf(bare).hidden_size == NemotronHConfig().hidden_size


def test_upstreams_own_class_has_another_chunk_size():
    nano = {"model_type": "nano", "hybrid_override_pattern": "M-M*"}
    assert backbone_config_from_hf(nano).chunk_size == 256


@pytest.mark.parametrize(
    ("stored", "ids"), [(2, (2,)), ([2, 12], (2, 12)), (None, ()), ([], ())], ids=str
)
def test_end_of_text_is_one_id_or_several(stored, ids):
    config = backbone_config_from_hf({"layer_types": "M", "eos_token_id": stored})
    assert config.eos_token_ids == ids


def test_none_means_absent():
    hf = {"layer_types": "*", "head_dim": None}
    config = backbone_config_from_hf(hf | {"num_attention_heads": 6, "num_key_value_heads": None})
    assert (config.head_dim, config.num_key_value_heads) == (128, 6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "model_type must be 'nemotron_h' or 'nano', got 'llama'"),
        ({"layer_types": None}, "hybrid_override_pattern must be given, got None"),
        ({"layer_types": 7}, "layer_types must be a string or a list of layer types, got 7"),
        ({"layer_types": ["mamba", "conv"]}, "layer_types must hold only M, mamba.*got 'conv'"),
        ({"num_hidden_layers": 9}, "num_hidden_layers must equal the 2 layers.*got 9"),
        ({"time_step_limit": 0.1}, r"time_step_limit must be a pair \(low, high\), got 0.1"),
        ({"time_step_limit": [0, "big"]}, "time_step_limit must be a number, got 'big'"),
        ({"layer_norm_epsilon": []}, r"layer_norm_epsilon must be a number, got \[\]"),
        ({"attention_bias": "no"}, "attention_bias must be true or false, got 'no'"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id or a list.*got '</s>'"),
        ({"eos_token_id": [True]}, r"eos_token_id must be a token id or a list.*got \[True\]"),
        ({"eos_token_id": -1}, "eos_token_id must be a token id or a list.*got -1"),
        ({"norm_eps": True}, "norm_eps must be a number, got True"),
        ({"norm_eps": 10**400}, "norm_eps must be a number, got 1000"),
        ({"norm_eps": math.nan}, "norm_eps must be a finite number above 0, got nan"),
        ({"hidden_size": 64.0}, "hidden_size must be a positive integer .*, got 64.0"),
        ({"hidden_size": "wide"}, "hidden_size must be a positive integer .*, got 'wide'"),
        ({"n_groups": 3}, r"n_groups must divide mamba_num_heads \(128\), got 3"),
    ],
)
def test_mistakes_in_a_config(change, words):
    with pytest.raises(ValueError, match=words):
        backbone_config_from_hf({"layer_types": "M*"} | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act must be 'relu2' .*got 'silu'"),
        ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act must be 'silu' .*got 'gelu'"),
        ({"residual_in_fp32": True}, "residual_in_fp32 must be False .*got True"),
        ({"sliding_window": 512}, "sliding_window must be None .*got 512"),
        ({"quantization_config": {"bits": 8}}, "quantization_config must be None .*'bits': 8"),
        ({"layer_types": ["mamba", "moe"]}, r"moe layers are not built\), got 'moe'"),
        ({"layer_types": "ME"}, r"moe layers are not built\), got 'E'"),
    ],
)
def test_what_is_legal_and_not_built(change, words):
    with pytest.raises(NotImplementedError, match=words):
        backbone_config_from_hf({"layer_types": "M*"} | change)


# ---- one-line specifiers

UNI, ATTN = CompressionStage(7, "uniform", 0.5), CompressionStage(39, "attention", 0.1)


def test_stage_grammar():
    assert stages_from_upstream("uni_7_0.5-attn_39_0.1", "CrossAttention") == (UNI, ATTN)
    assert preset("nemotron-nano-9b-v2").stages == (UNI, ATTN)
    drop = stages_from_upstream("uni_7_0.5-attn_39_0.1", "no_merge")
    assert [(s.select, s.transfer) for s in drop] == [("uniform", False), ("attention", False)]
    mixed = stages_from_upstream("unidrop_2_0.8-attndrop_14_0.6-attn_39_1", "CrossAttention")
    assert [(s.layer, s.select, s.keep, s.transfer) for s in mixed] == [
        (2, "uniform", 0.8, False),
        (14, "attention", 0.6, False),
        (39, "attention", 1.0, True),
    ]
    run = manifest("tiny_weights")["config"]
    assert stages_from_upstream(run["pdrop_type_of_dropping_runs"], run["merge_module"]) == TRANSV


def test_stages_stored_beside_the_llm():
    hf = {"pdrop_type": "uni_7_0.5-attn_39_0.1", "merge_module": "CrossAttention"}
    assert stages_from_hf(hf | {"use_pdrop": True}) == (UNI, ATTN)
    assert stages_from_hf(hf | {"use_pdrop": False}) == stages_from_hf({}) == ()
    with pytest.raises(ValueError, match="use_pdrop must be true or false, got 'false'"):
        stages_from_hf(hf | {"use_pdrop": "false"})
    dropping = stages_from_hf({"use_pdrop": True, "pdrop_type": "uni_7_0.5"})
    assert dropping == (CompressionStage(7, "uniform", 0.5, transfer=False),)


@pytest.mark.parametrize(
    ("pdrop", "words"),
    [
        ("", "pdrop_type must be stages of the form TYPE_LAYER_RATIO.*got ''"),
        ("uni_7", "of the form TYPE_LAYER_RATIO.*got 'uni_7'"),
        ("uni_7_0.5_x", "of the form TYPE_LAYER_RATIO.*got 'uni_7_0.5_x'"),
        ("uni_seven_0.5", "of the form TYPE_LAYER_RATIO.*got 'uni_seven_0.5'"),
        ("uni_7_0.5-attn_39_half", "of the form TYPE_LAYER_RATIO.*got 'attn_39_half'"),
        ("rand_7_0.5", "stage types that contain attn or uni, got 'rand_7_0.5'"),
        ("uni_7_0", r"stage 'uni_7_0': .*keep must lie in \(0, 1\], got 0.0"),
        ("uni_7_1.5", r"stage 'uni_7_1.5': .*keep must lie in \(0, 1\], got 1.5"),
        ("uni_7_nan", r"stage 'uni_7_nan': .*keep must lie in \(0, 1\], got nan"),
    ],
)
def test_mistakes_in_stages(pdrop, words):
    with pytest.raises(ValueError, match=words):
        stages_from_upstream(pdrop, "CrossAttention")


def test_mistakes_in_the_merge_module():
    with pytest.raises(ValueError, match=r"merge_module must be .*got 'pool'"):
        stages_from_upstream("uni_7_0.5", "pool")


def test_projector_specifiers():
    assert projector_from_upstream("tome_mlp-16") == ProjectorConfig()
    assert projector_from_upstream("gelu_mlp") == ProjectorConfig(kind="gelu_mlp")
    assert projector_from_upstream("no-align+gelu_mlp").kind == "gelu_mlp"
    fused = projector_from_upstream("fused_tome_mlp-64")
    assert (fused.kind, fused.num_tokens) == ("fused_tome_mlp", 64)
    for wrong in ("tome_mlp", "tome_mlp-0", "no-align-16-+tome_mlp", "linear"):
        with pytest.raises(ValueError, match=f"arch_specifier must be .*got '{wrong[:4]}"):
            projector_from_upstream(wrong)


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
    for name in ("dinov2-vit-l", "internvideo2-1b-16-224px", "dinosiglip-vit-so-384px"):
        with pytest.raises(NotImplementedError, match="must be one of siglip-vit-so400m-384px"):
            vision_from_upstream(name)
    with pytest.raises(NotImplementedError, match="no other encoder is built"):
        vision_from_upstream("siglip-vit-so400m+dinov2-vit-l")
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


# ---- names of weights


def expected_names(stages) -> set[str]:
    with torch.device("meta"):
        return set(HybridBackbone(TINY, stages).state_dict())


def test_every_golden_name_finds_its_parameter():
    names = llm_names(TRANSV)
    got = [piece.name for key in golden("tiny_weights") for piece in names(key)]
    assert len(got) == len(set(got))
    assert set(got) == expected_names(TRANSV)


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


def test_alpha_counts_the_stages_that_transfer():
    stages = (DROP_ONLY[0], TRANSV[1])
    assert llm_names(stages)("backbone.alpha") == (Piece("transv.1.alpha", take=(0, 1)),)
    assert [p.take for p in llm_names(TRANSV)("model.alpha")] == [(0, 2), (1, 2)]
    assert llm_names(DROP_ONLY)("backbone.alpha") == ()
    assert llm_names()("backbone.alpha") is None


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("backbone.embeddings.weight", "embeddings.weight"),
        ("backbone.embedding.weight", "embeddings.weight"),
        ("model.embeddings.weight", "embeddings.weight"),
        ("model.layers.3.mixer.in_proj.weight", "layers.3.mixer.in_proj.weight"),
        ("backbone.norm_f.weight", "norm_f.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("backbone.merge_modules.1.q_proj.weight", "transv.1.q_proj.weight"),
    ],
)
def test_llm_names(key, ours):
    assert llm_names()(key) == (Piece(ours),)


def test_llm_names_that_go_nowhere():
    assert llm_names()("mtp.layers.0.mixer.q_proj.weight") == ()
    for key in ("layers.0.norm.weight", "model.rotary.inv_freq", "transv.0.alpha", "lm_head.bias"):
        assert llm_names()(key) is None


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
    # a deeper network is another network, not an unused tail: no model has this parameter
    assert names("blocks.4.norm1.weight") == (Piece("blocks.4.norm1.weight"),)
    for key in ("cls_token", "blocks.0.ls1.gamma", "encoder.layers.x.y"):
        assert names(key) is None


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
