"""What a model and a request need, known before anything is loaded or run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from timeviper_fast.config import ATTENTION, BackboneConfig, TimeViperConfig
from timeviper_fast.errors import ArgumentError
from timeviper_fast.model.model import TimeViperNetwork

__all__ = ["check_window", "model_facts"]


def check_window(config: BackboneConfig, lengths: list[int], max_new_tokens: int) -> None:
    """Prompt and answer fit the model's window.

    Only attention looks back token by token, so what reaches the attention layers is counted.

    Args:
        config: the backbone's shape.
        lengths: prompt tokens that enter each layer (`tokens_before_layer`).
        max_new_tokens: room for the answer.

    Raises:
        ValueError: they do not fit.
    """
    window = config.max_position_embeddings
    longest = max((lengths[layer] for layer in config.layers_of(ATTENTION)), default=0)
    if longest + max_new_tokens > window:
        attended = f"{longest} at its attention layers (of {lengths[0]} in the prompt)"
        raise ArgumentError(
            "prefill",
            "prompt and answer",
            f"fit the model's window of {window} tokens",
            f"{attended} + {max_new_tokens} new",
            "sample fewer frames, allow fewer new tokens or drop more vision tokens earlier",
        )


def model_facts(config: TimeViperConfig) -> dict[str, Any]:
    """What a person wants to know of a model before loading it."""
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
        "tokens_per_frame": config.tokens_per_frame,
        "frame_size": config.vision.image_size,
        "window": backbone.max_position_embeddings,
        "stages": "; ".join(
            f"before layer {s.layer}: {s.select}, keep {s.keep:g}"
            + (", transfer" if s.transfer else "")
            for s in config.stages
        )
        or "none",
    }
