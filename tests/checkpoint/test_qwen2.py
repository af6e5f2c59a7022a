"""Qwen2's config.json and weights, against transformers' own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.checkpoint.parts import randomise
from timeviper_fast.checkpoint.mapping import Piece
from timeviper_fast.checkpoint.qwen2 import qwen2_config_from_hf, qwen2_names
from timeviper_fast.checkpoint.upstream import load_backbone
from timeviper_fast.config import CompressionStage
from timeviper_fast.layout import Segment
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import LLM_PRESETS

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def qwen2(**changes: Any) -> torch.nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = randomise(Qwen2ForCausalLM(Qwen2Config(**SHAPE | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_a_directory_of_transformers(tmp_path, tied: bool) -> None:
    theirs = qwen2(tie_word_embeddings=tied, rope_theta=1e6)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    model = load_backbone(HybridBackbone, tmp_path).eval()
    assert (model.lm_head.weight is model.embeddings.weight) is tied
    ids = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden, _ = model(model.embeddings(ids), (Segment(40),))
        want = theirs(ids).logits
    torch.testing.assert_close(model.logits(hidden), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LLM_PRESETS)
def test_published_shapes(name: str) -> None:
    """The keys that Qwen's own files have; the window is that of the 2B, or of Qwen2-7B-Instruct."""
    ours = LLM_PRESETS[name]
    told = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": ours.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": ours.intermediate_size,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": ours.num_attention_heads,
        "num_hidden_layers": 28,
        "num_key_value_heads": ours.num_key_value_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": ours.vocab_size,
    }
    read = qwen2_config_from_hf(told)
    assert read.eos_token_ids == (151645,)
    assert read == type(read)(**{**vars(ours), "eos_token_ids": (151645,)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu' (nothing else is built), got 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window must be False"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling must be None"),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_parameters must be None or of the rope_type 'default'",
        ),
        ({"rope_scaling": ["yarn"]}, "rope_scaling must be an object or null, got ['yarn']"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"num_attention_heads": "4"}, "num_attention_heads must be a positive integer, got '4'"),
        ({"hidden_size": 30}, "hidden_size must be a multiple of num_attention_heads (4), got 30"),
        ({"eos_token_id": "x"}, "eos_token_id must be a token id or a list of them, got 'x'"),
        ({"rope_theta": "1e6"}, "rope_theta must be a finite number of 0 or more, got '1e6'"),
    ],
)
def test_mistakes(change: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=re.escape(words)):
        qwen2_config_from_hf(SHAPE | change)


@pytest.mark.parametrize(
    ("change", "theta"),
    [
        ({"rope_scaling": {"type": "default"}, "rope_theta": 5e5}, 5e5),
        ({"rope_scaling": {"rope_type": "default"}, "rope_theta": None}, 1e4),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}, "rope_theta": None}, 3e5),
    ],
)
def test_default_rotary_positions(change: dict[str, Any], theta: float) -> None:
    assert qwen2_config_from_hf(SHAPE | change).rope_theta == theta


def test_a_block_is_two_layers() -> None:
    names = qwen2_names()
    at = {
        "model.layers.3.self_attn.q_proj.bias": "layers.6.mixer.q_proj.bias",
        "model.layers.3.input_layernorm.weight": "layers.6.norm.weight",
        "model.layers.3.post_attention_layernorm.weight": "layers.7.norm.weight",
        "model.layers.3.mlp.gate_proj.weight": "layers.7.mixer.gate_proj.weight",
        "model.norm.weight": "norm_f.weight",
    }
    assert {key: names(key) for key in at} == {k: (Piece(v),) for k, v in at.items()}
    assert names("model.layers.0.self_attn.rotary_emb.inv_freq") == ()
    assert names("model.layers.0.self_attn.q_proj.scale") is None
    assert names("layers.0.self_attn.q_proj.weight") is None
    assert names("model.alpha") is None


def test_transfer_weights_beside_it() -> None:
    stages = tuple(
        CompressionStage(layer, "uniform", keep, transfer=transfer)
        for layer, keep, transfer in ((2, 0.5, False), (4, 0.2, True))
    )
    names = qwen2_names(stages)
    assert names("model.alpha") == (Piece("transv.1.alpha", take=(0, 1)),)
    assert names("model.merge_modules.1.q_proj.bias") == (Piece("transv.1.q_proj.bias"),)
