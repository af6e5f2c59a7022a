"""Nemotron-H in other projects' words: every spelling is read, every mistake is named."""

from __future__ import annotations

import json
import math

import pytest

from tests.checkpoint.common import expected_names
from tests.goldens import golden
from tests.tiny import TRANSV
from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.checkpoint.nemotron_h import backbone_config_from_hf, llm_names
from timeviper_fast.config import (
    BackboneConfig,
)
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
        ({"layer_types": "ME", "n_shared_experts": 2}, "n_shared_experts must be 1 .*got 2"),
    ],
)
def test_what_is_legal_and_not_built(change, words):
    with pytest.raises(NotImplementedError, match=words):
        backbone_config_from_hf({"layer_types": "M*"} | change)


# what Nemotron-3-Nano-Omni's llm_config says of its experts
EXPERTS = {
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "moe_latent_size": None,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_shared_experts": 1,
}


def test_keys_of_experts():
    config = backbone_config_from_hf({"layer_types": ["mamba", "moe"]} | EXPERTS)
    assert config.pattern == "ME"
    assert (config.num_experts, config.experts_per_token) == (128, 6)
    assert (config.expert_size, config.shared_expert_size) == (1856, 3712)
    assert (config.expert_latent_size, config.expert_scale) == (0, 2.5)
    # a dense model's file may carry them
    dense = backbone_config_from_hf({"layer_types": "M-"} | EXPERTS)
    assert dense == backbone_config_from_hf({"layer_types": "M-"})


def test_a_missing_key_of_experts_means_what_the_class_means(tmp_path):
    from transformers import NemotronHConfig

    NemotronHConfig(hybrid_override_pattern="ME").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    bare = {"model_type": "nemotron_h", "hybrid_override_pattern": "ME"}
    assert backbone_config_from_hf(bare) == backbone_config_from_hf(written)


def test_experts_are_stored_one_by_one():
    names = llm_names(experts=8)
    key = "backbone.layers.1.mixer.experts.{}.up_proj.weight"
    assert names(key.format(3)) == (Piece("layers.1.mixer.experts.up_proj", put=(3, 8)),)
    assert names(key.format(8)) is None
    shared = "layers.1.mixer.shared_experts.up_proj.weight"
    assert names(f"backbone.{shared}") == (Piece(shared),)


def test_every_golden_name_finds_its_parameter():
    names = llm_names(TRANSV)
    got = [piece.name for key in golden("tiny_weights") for piece in names(key)]
    assert len(got) == len(set(got))
    assert set(got) == expected_names(TRANSV)


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
