"""A random model with open gates, and a haystack of random features."""

from __future__ import annotations

import torch

from timeviper_fast.evaluation.synthetic import SyntheticHaystack
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.synthetic.pool import FramePool, every_needle
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.timeviper import TimeViper

TASKS = ("sign", "colour", "chain")


def random_model(name="tiny-trained"):
    """A random model with open gates, so that the transfer has an effect."""
    model = TimeViper(preset(name), byte_tokenizer()).eval()
    init_weights(model, seed=0)
    with torch.no_grad():
        for stage in model.backbone.transv:
            stage.alpha.fill_(0.7)
    return model


def random_pool(plain=120, copies=1):
    """A pool in which every frame has different features."""
    places, count = {}, plain
    for needle in every_needle():
        places[needle] = (count, copies)
        count += copies
    generator = torch.Generator().manual_seed(0)
    return FramePool(torch.randn(count, 4, 64, generator=generator), plain, places)


def haystack(model, tasks=TASKS, **options):
    return SyntheticHaystack(model, random_pool(), tasks, **options)
