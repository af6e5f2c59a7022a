"""A model's sizes and settings, without its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from timeviper_fast.config import ATTENTION, EXPERTS, MAMBA, MLP, BackboneConfig, TimeViperConfig
from timeviper_fast.inference.memory import idle_numbers
from timeviper_fast.model.model import TimeViperNetwork

__all__ = ["model_facts"]


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
        "layers": _layers(backbone),
        **_of_experts(backbone, sizes["llm_parameters"]),
        "encoder": config.vision.kind,
        "clip_frames": config.clip_frames,
        "tokens_per_frame": config.tokens_per_frame,
        "frame_size": config.vision.image_size,
        "window": backbone.max_position_embeddings,
        "stages": "; ".join(
            f"before {backbone.named(s.layer)}: {s.select}, "
            + (f"remove {s.prune:g}" if s.by_content else f"keep {s.keep:g}")
            + (" of the normed stream" if (s.select, s.score) == ("attention", "normed") else "")
            + (", transfer" if s.transfer else "")
            for s in config.stages
        )
        or "none",
    }


def _layers(backbone: BackboneConfig) -> str:
    """How many layers of each kind there are; experts only where there are any."""
    kinds = {"Mamba-2": MAMBA, "attention": ATTENTION, "MLP": MLP}
    if EXPERTS in backbone.pattern:
        kinds["experts"] = EXPERTS
    return ", ".join(f"{len(backbone.layers_of(kind))} {name}" for name, kind in kinds.items())


def _of_experts(backbone: BackboneConfig, parameters: int) -> dict[str, Any]:
    """Of an LLM with experts, how many a token passes through."""
    layers = backbone.layers_of(EXPERTS)
    if not layers:
        return {}
    chosen = f"{backbone.experts_per_token} of {backbone.num_experts} and 1 shared"
    idle = sum(idle_numbers(backbone, layer) for layer in layers)
    return {"experts_per_token": chosen, "llm_parameters_per_token": parameters - idle}
