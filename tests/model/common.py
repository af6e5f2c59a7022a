"""Runs of vision tokens in a mask, a random model with three stages, and VideoChat-Flash's LLM."""

from __future__ import annotations

import re
from typing import Any

import torch

from tests.goldens import golden, manifest
from tests.tiny import TINY
from timeviper_fast.config import BackboneConfig, CompressionStage
from timeviper_fast.layout import VisualSpan
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.nemotron_h import HybridBackbone

SCHEDULE = (
    CompressionStage(2, "uniform", 0.7, transfer=False),
    CompressionStage(3, "attention", 0.4),
    CompressionStage(8, "attention", 0.2, transfer=False),
)


def runs_of(mask: torch.Tensor) -> list[VisualSpan]:
    """The runs of True in a one-dimensional mask."""
    edges = torch.cat([torch.zeros(1), mask.float(), torch.zeros(1)]).diff()
    starts, stops = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return [VisualSpan(a, b - a) for a, b in zip(starts.tolist(), stops.tolist())]


def random_model(stages=SCHEDULE) -> HybridBackbone:
    model = HybridBackbone(TINY, stages)
    init_weights(model, seed=3)
    for stage in model.transv:
        if stage.stage.transfer:
            torch.nn.init.constant_(stage.alpha, 0.8)
    return model.double().eval()


def flash_stages(about: dict[str, Any]) -> tuple[CompressionStage, ...]:
    """VideoChat-Flash's dropping, from what is written beside a recorded run of it."""
    blocks, ratios = about["llm_compress_layer_list"] or (), about["llm_image_token_ratio_list"]
    # stages in front that keep tokens by distance
    by_distance = {
        "uniform": len(blocks),
        "uniform0_attention": 1,
        "uniform1_attention": 2,
    }.get(about["llm_compress_type"], 0)
    return tuple(
        CompressionStage(
            2 * block,
            "uniform" if i < by_distance else "attention",
            keep,
            transfer=False,
            score="normed",
            spacing="linspace",
        )
        for i, (block, keep) in enumerate(zip(blocks, ratios[1:] if blocks else ()))
    )


def flash_config(shape: dict[str, Any]) -> BackboneConfig:
    return BackboneConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        pattern="*-" * shape["num_hidden_layers"],
        num_attention_heads=shape["num_attention_heads"],
        num_key_value_heads=shape["num_key_value_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        norm_eps=shape["rms_norm_eps"],
        attention_bias=True,
        max_position_embeddings=32768,
        family="qwen2",
        rope_theta=shape["rope_theta"],
    )


def flash_weights(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Qwen2's weights under our names, renamed by hand (not by the product)."""
    ours = {}
    for name, value in theirs.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(\w+)\.(.+)", name)
        if name.startswith("model.layers.") and found:
            block, part, rest = int(found[1]), found[2], found[3]
            layer = 2 * block + (part in ("mlp", "post_attention_layernorm"))
            ours[f"layers.{layer}.{'norm' if 'norm' in part else 'mixer'}.{rest}"] = value
    return ours | {
        "embeddings.weight": theirs["model.embed_tokens.weight"],
        "norm_f.weight": theirs["model.norm.weight"],
        "lm_head.weight": theirs["lm_head.weight"],
    }


def flash_backbone(stages: tuple[CompressionStage, ...] = ()) -> HybridBackbone:
    """The language model of the recorded runs `vcf_llm_*`."""
    model = HybridBackbone(flash_config(manifest("vcf_llm_weights")["config"]), stages)
    model.load_state_dict(flash_weights(golden("vcf_llm_weights")))
    return model.eval()


def qwen2_pair(
    stages: tuple[CompressionStage, ...] = (), **shape: Any
) -> tuple[Any, HybridBackbone]:
    """A random Qwen2ForCausalLM, every bias and norm included, and ours with its weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    given = {
        "vocab_size": 90,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        **shape,
    }
    theta = {"rope_theta": given["rope_theta"], "rope_type": "default"}
    config = {n: v for n, v in given.items() if n != "rope_theta"}
    theirs = Qwen2ForCausalLM(Qwen2Config(**config, rope_parameters=theta, use_cache=True)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise * (0.5 if "bias" in name else parameter.shape[-1] ** -0.5))
    ours = HybridBackbone(flash_config(given), stages)
    missing = ours.load_state_dict(flash_weights(theirs.state_dict()), strict=False)
    assert all(name.startswith("transv.") for name in missing.missing_keys)
    assert not missing.unexpected_keys
    return theirs, ours.eval()
