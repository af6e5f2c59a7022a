"""The LLM's configuration: every broken rule has its sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from timeviper_fast.config import BackboneConfig
from timeviper_fast.presets import LLM_PRESETS

EXPERTS = BackboneConfig(
    pattern="ME", num_experts=8, experts_per_token=3, expert_size=16, shared_expert_size=24
)
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
        (
            lambda: BackboneConfig(pattern="ME"),
            "num_experts must be above 0 for a pattern with E, got 0",
        ),
        (lambda: replace(EXPERTS, mlp_bias=True), "mlp_bias must be False for a pattern with E"),
        (
            lambda: replace(EXPERTS, expert_groups=3),
            r"expert_groups must divide num_experts \(8\) into groups of two or more, got 3",
        ),
        (lambda: replace(EXPERTS, expert_groups=8), "into groups of two or more, got 8"),
        (
            lambda: replace(EXPERTS, expert_groups=4, best_expert_groups=5),
            r"best_expert_groups must be at most expert_groups \(4\), got 5",
        ),
        (
            lambda: replace(EXPERTS, expert_groups=4),
            "experts_per_token must be at most 2, the experts that can be chosen, got 3",
        ),
        (lambda: replace(EXPERTS, expert_size=-1), "expert_size must be an integer of 0 or more"),
        (lambda: replace(EXPERTS, expert_scale=0), "expert_scale must be a finite number above 0"),
    ],
)
def test_sentences(build, words):
    with pytest.raises(ValueError, match=words):
        build()
