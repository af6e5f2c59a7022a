"""The Mamba-2 models of transformers, tiny, and random where they are initialised to constants.

Two layers, the second with attention where the model has any; two groups; chunks of 8 tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 61
PAD = 0
WORDS = {"vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": PAD, "eos_token_id": None}
LAYERS = {"num_hidden_layers": 2, "intermediate_size": 48}
ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1}
SCAN = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
NEMOTRON = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
    "chunk_size": 8,
}
GRANITE = {"shared_intermediate_size": 24, "num_local_experts": 2, "num_experts_per_tok": 1}

# folder in transformers: (class, config)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bamba": ("Bamba", WORDS | LAYERS | ATTENTION | SCAN | {"attn_layer_indices": [1]}),
    "falcon_h1": (
        "FalconH1",
        WORDS | LAYERS | ATTENTION | SCAN | {"mamba_d_ssm": 64},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        WORDS | LAYERS | ATTENTION | SCAN | GRANITE | {"layer_types": ["mamba", "attention"]},
    ),
    "mamba2": (
        "Mamba2",
        WORDS
        | {"num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2}
        | {"chunk_size": 8},
    ),
    "nemotron_h": (
        "NemotronH",
        WORDS
        | ATTENTION
        | NEMOTRON
        | {"head_dim": 16, "intermediate_size": 48, "hybrid_override_pattern": "M*-"},
    ),
    "zamba2": (
        "Zamba2",
        WORDS
        | LAYERS
        | ATTENTION
        | {
            "n_mamba_heads": 4,
            "mamba_ngroups": 2,
            "mamba_d_state": 8,
            "chunk_size": 8,
            "num_mem_blocks": 1,
        }
        | {"layers_block_type": ["mamba", "hybrid"]},
    ),
}


def build(name: str, **changes: Any) -> torch.nn.Module:
    """The causal language model, in eval mode, its parameters from one seed."""
    kind, config = MODELS[name]
    made = getattr(transformers, f"{kind}Config")(**config | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("dt_bias"):
                parameter.uniform_(-4, 1)
            elif parameter_name.endswith(("A_log", ".D")):
                parameter.uniform_(-0.5, 1.5)
            elif parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
            else:
                parameter.normal_(0, 1.5 * parameter[0].numel() ** -0.5)
    return model


def tokens(batch: int, length: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)
