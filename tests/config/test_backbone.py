"""The LLM's configuration: every broken rule has its sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from timeviper_fast.config import BackboneConfig
from timeviper_fast.presets import LLM_PRESETS

QWEN2 = LLM_PRESETS["qwen2-7b"]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: BackboneConfig(pattern="MX"), "pattern must be .* letters M, .* got 'MX'"),
        (lambda: BackboneConfig(pattern=""), "pattern must be a non-empty string"),
        (lambda: BackboneConfig(hidden_size=0), "hidden_size must be a positive integer .*, got 0"),
        (lambda: BackboneConfig(head_dim=True), "head_dim must be a positive integer .*, got True"),
        (
            lambda: BackboneConfig(num_key_value_heads=7),
            r"num_key_value_heads must divide num_attention_heads \(40\), got 7",
        ),
        (
            lambda: BackboneConfig(n_groups=3),
            r"n_groups must divide mamba_num_heads \(128\), got 3",
        ),
        (
            lambda: BackboneConfig(vocab_size=100, eos_token_ids=(2, 100)),
            r"eos_token_ids must lie below vocab_size \(100\), got \(2, 100\)",
        ),
        (
            lambda: BackboneConfig(rope_theta=1e6),
            "rope_theta must be 0 for family='nemotron_h', got 1000000.0",
        ),
        (
            lambda: BackboneConfig(family="llama"),
            "family must be one of 'nemotron_h', 'qwen2', got 'llama'",
        ),
        (
            lambda: replace(QWEN2, pattern="*--*"),
            r"pattern must repeat \*- for family='qwen2', got '\*--\*'",
        ),
        (
            lambda: replace(QWEN2, pattern="*-*"),
            r"pattern must repeat \*- for family='qwen2', got '\*-\*'",
        ),
        (
            lambda: replace(QWEN2, rope_theta=0),
            "rope_theta must be above 0 for family='qwen2', got 0",
        ),
        (lambda: replace(QWEN2, head_dim=63), "head_dim must be even for family='qwen2', got 63"),
        (
            lambda: BackboneConfig(time_step_limit=(1, 0)),
            "time_step_limit must be a tuple .low, high.",
        ),
        (
            lambda: BackboneConfig(norm_eps=0.0),
            "BackboneConfig: norm_eps must be a finite number above 0, got 0.0",
        ),
    ],
)
def test_sentences(build, words):
    with pytest.raises(ValueError, match=words):
        build()
