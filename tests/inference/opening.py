"""A random LLM that reads a video, then a question, with counts of its linear maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from tests.inference.common import CONFIG, build
from timeviper_fast.config import CompressionStage, TimeViperConfig
from timeviper_fast.inference.ended import Ended, Prefill
from timeviper_fast.inference.generate import read_front
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import preset

QWEN2 = replace(CONFIG, family="qwen2", pattern="*-" * 4, rope_theta=1e4, attention_bias=True)


def uniform(layer, keep, transfer=True):
    return CompressionStage(layer, "uniform", keep, transfer=transfer)


def asking(layer, keep, transfer=True, score="raw"):
    return CompressionStage(layer, "attention", keep, transfer=transfer, score=score)


def content(prune):
    return CompressionStage(0, "content", 1.0, transfer=False, prune=prune, match="best")


# the tiny model's pattern is M-M*-M-M*-M-
SCHEDULES = {
    "none": (CONFIG, ()),
    "shipped": (CONFIG, (uniform(2, 0.5), asking(8, 0.1))),
    "two before": (CONFIG, (uniform(0, 0.9), uniform(4, 0.5, transfer=False), asking(8, 0.25))),
    "asks early": (CONFIG, (asking(3, 0.5, score="normed"), uniform(5, 0.3), asking(8, 0.2))),
    "uniform alone": (CONFIG, (uniform(2, 0.5), uniform(8, 0.25))),
    "keeps nothing": (CONFIG, (uniform(2, 0.5), asking(8, 0.001))),
    "content first": (CONFIG, (content(0.6), uniform(2, 0.5), asking(8, 0.25))),
    "content alone": (CONFIG, (content(0.5),)),
    "qwen2": (QWEN2, (uniform(2, 0.5, transfer=False), asking(4, 0.25, False, "normed"))),
    "qwen2 raw": (QWEN2, (uniform(2, 0.5), asking(4, 0.25))),
}


def config_of(name):
    backbone, stages = SCHEDULES[name]
    return replace(preset("tiny"), backbone=backbone, stages=stages)


@contextmanager
def linear_maps(model: nn.Module) -> Iterator[list[int]]:
    """The FLOPs of every nn.Linear that is called inside the block."""
    counted: list[int] = []

    def hook(module, inputs, output):
        counted.append(2 * output.numel() * module.in_features)

    hooks = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield counted
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def opened(
    config: TimeViperConfig, before: int, frames: int, model: HybridBackbone | None = None
) -> Ended:
    """A video of noise that the layers in front of the asking layer have read."""
    model = model or build(config.stages, config.backbone)
    span = VisualSpan(before, config.visual_tokens(frames))
    hidden = torch.randn(1, span.stop, config.backbone.hidden_size)
    each = config.frame_tokens(frames) if frames else 0
    return read_front(model, hidden, Segment(span.stop, span, frame_tokens=each))


def ask(video: Ended, text: int) -> Prefill:
    """Read a question of `text` tokens, to the logits of its last position."""
    words = torch.randn(1, text, video.backbone.config.hidden_size)
    return video.read([words], max_new_tokens=1)
