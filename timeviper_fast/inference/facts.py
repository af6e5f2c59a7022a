"""A model's sizes and settings, without its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from timeviper_fast.config import TimeViperConfig
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
        "layers": f"{len(backbone.layers_of('M'))} Mamba-2, {len(backbone.layers_of('*'))} "
        f"attention, {len(backbone.layers_of('-'))} MLP",
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
