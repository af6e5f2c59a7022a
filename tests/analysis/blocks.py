"""A small random model with vision in its prompt, and single layers of a blocked view of it."""

from __future__ import annotations

import torch

from tests.inference.one_go import backbone
from timeviper_fast.analysis.blocking import blocked_backbone
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.stack import Packing

PATTERN = "M-M*-M*M-"
BEFORE, VISION, AFTER = 3, 24, 9
LENGTH = BEFORE + VISION + AFTER
SEES = slice(BEFORE, BEFORE + VISION)
SEGMENT = Segment(LENGTH, VisualSpan(BEFORE, VISION))
BOTH = ("instruction", "response")


def model(stages=(), dtype=torch.float64, pattern=PATTERN):
    return backbone(pattern, stages, dtype)


def rows(count=LENGTH, seed=0, batch=1, width=128, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, width, generator=generator, dtype=dtype)


@torch.no_grad()
def mixed(plain, layer, x, blocking, segment=SEGMENT):
    """What one mixer of a blocked view makes of x, without a cache."""
    view = blocked_backbone(plain, blocking)
    with view.labels.reading(x.shape[1], (segment,), None):
        return view.layers[layer].mixer(x, Packing((x.shape[1],), None), None)


@torch.no_grad()
def plainly(plain, layer, x):
    return plain.layers[layer].mixer(x, Packing((x.shape[1],), None), None)
