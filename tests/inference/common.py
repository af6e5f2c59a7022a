"""A small random language model with two stages, and prompts for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from timeviper_fast.config import CompressionStage
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import preset

CONFIG = replace(preset("tiny").backbone, time_step_limit=(0.0, float("inf")))
STAGES = (CompressionStage(0, "uniform", 0.7), CompressionStage(8, "attention", 0.3))


def build(stages=STAGES, config=CONFIG, seed=1):
    model = HybridBackbone(config, stages)
    init_weights(model, seed=seed)
    with torch.no_grad():
        for module in model.transv:
            if module.stage.transfer:
                module.alpha.fill_(0.8)
    return model.eval()


def prompt(length, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, CONFIG.hidden_size, generator=generator)
