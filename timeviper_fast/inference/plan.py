"""What a model and a request need, computed before anything is loaded or run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from timeviper_fast.config import ATTENTION, BackboneConfig, CompressionStage, TimeViperConfig
from timeviper_fast.errors import ArgumentError, fail
from timeviper_fast.layout import Segment, tokens_before_layer
from timeviper_fast.model.model import TimeViperNetwork

__all__ = ["model_facts", "prompt_lengths"]


def prompt_lengths(
    config: BackboneConfig,
    stages: tuple[CompressionStage, ...],
    segment: Segment,
    max_new_tokens: int,
) -> list[int]:
    """Check that prompt and answer fit the model; return the prompt tokens that enter each layer.

    Only attention looks back token by token, so the window counts the tokens that reach the
    attention layers.

    Args:
        config: the backbone's shape.
        stages: where vision tokens are dropped.
        segment: the prompt's length and where its vision tokens lie.
        max_new_tokens: room for the answer.

    Raises:
        ValueError: the prompt is empty or becomes so, or does not fit the window.
    """
    lengths = tokens_before_layer((segment,), stages, config.num_hidden_layers)
    if 0 in lengths:
        rule = f"have a token left at layer {lengths.index(0)}"
        fail("", "the prompt", rule, 0)
    window = config.max_position_embeddings
    longest = max((lengths[layer] for layer in config.layers_of(ATTENTION)), default=0)
    if longest + max_new_tokens > window:
        attended = f"{longest} at its attention layers (of {lengths[0]} in the prompt)"
        raise ArgumentError(
            "",
            "prompt and answer",
            f"fit the model's window of {window} tokens",
            f"{attended} + {max_new_tokens} new",
            "sample fewer frames, allow fewer new tokens or drop more vision tokens earlier",
        )
    return lengths


def model_facts(config: TimeViperConfig) -> dict[str, Any]:
    """A model's sizes and settings, for `timeviper-fast info`."""
    with torch.device("meta"):
        model = TimeViperNetwork(config)
    backbone = config.backbone
    parts: dict[str, nn.Module]
    parts = {"vision": model.vision, "projector": model.projector, "llm": model.backbone}
    sizes = {f"{n}_parameters": sum(p.numel() for p in m.parameters()) for n, m in parts.items()}
    return {
        **sizes,
        "layers": f"{len(backbone.layers_of('M'))} Mamba-2, {len(backbone.layers_of('*'))} "
        f"attention, {len(backbone.layers_of('-'))} MLP",
        "encoder": config.vision.kind,
        "clip_frames": config.clip_frames,
        "tokens_per_frame": config.tokens_per_frame,
        "frame_size": config.vision.image_size,
        "window": backbone.max_position_embeddings,
        "stages": "; ".join(
            f"before {backbone.named(s.layer)}: {s.select}, keep {s.keep:g}"
            + (" of the normed stream" if (s.select, s.score) == ("attention", "normed") else "")
            + (", transfer" if s.transfer else "")
            for s in config.stages
        )
        or "none",
    }
