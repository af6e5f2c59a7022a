"""Runs of vision tokens in a mask, and a random model with three stages."""

from __future__ import annotations

import torch

from tests.tiny import TINY
from timeviper_fast.config import CompressionStage
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
