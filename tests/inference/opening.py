"""A random LLM that reads a video and a question in two passes, with counts of its linear maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from tests.inference.common import CONFIG, build
from timeviper_fast.config import CompressionStage, TimeViperConfig
from timeviper_fast.inference.flow import asking_layer
from timeviper_fast.layout import Segment, VisualSpan
from timeviper_fast.model.cache import HybridCache
from timeviper_fast.model.nemotron_h import HybridBackbone
from timeviper_fast.presets import preset
from tvkernels import dropped_indices

QWEN2 = replace(CONFIG, family="qwen2", pattern="*-" * 4, rope_theta=1e4, attention_bias=True)


def uniform(layer, keep, transfer=True):
    return CompressionStage(layer, "uniform", keep, transfer=transfer)


def asking(layer, keep, transfer=True, score="raw"):
    return CompressionStage(layer, "attention", keep, transfer=transfer, score=score)


# the tiny model's pattern is M-M*-M-M*-M-
SCHEDULES = {
    "none": (CONFIG, ()),
    "shipped": (CONFIG, (uniform(2, 0.5), asking(8, 0.1))),
    "two before": (CONFIG, (uniform(0, 0.9), uniform(4, 0.5, transfer=False), asking(8, 0.25))),
    "asks early": (CONFIG, (asking(3, 0.5, score="normed"), uniform(5, 0.3), asking(8, 0.2))),
    "uniform alone": (CONFIG, (uniform(2, 0.5), uniform(8, 0.25))),
    "keeps nothing": (CONFIG, (uniform(2, 0.5), asking(8, 0.001))),
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


class Opened:
    """A video that the layers in front of the asking layer have read.

    Attributes:
        cache: states of the layers.
        rows: (1, n, d_model) that enter the asking layer; None if there is none.
        dropped: for each stage in front of it, the rows that the stage dropped.
    """

    @torch.no_grad()
    def __init__(
        self,
        config: TimeViperConfig,
        before: int,
        frames: int,
        room: int,
        model: HybridBackbone | None = None,
    ) -> None:
        self.config = config
        self.model = model or build(config.stages, config.backbone)
        original = config.visual_tokens(frames)
        self.stages = sum(stage.layer < asking_layer(config) for stage in config.stages)
        hidden = torch.randn(1, before + original, config.backbone.hidden_size)
        self.segment = Segment(before + original, VisualSpan(before, original))
        capacities = [before + original + room] * config.backbone.num_hidden_layers
        self.cache = HybridCache(config.backbone, capacities)
        self.dropped = []
        run = self.model.run
        passage = run(hidden, (self.segment,), cache=self.cache, stop_stage=0)
        for number in range(self.stages):
            hidden, segment = passage.hidden, passage.segments[0]
            passage = run(
                hidden, (segment,), cache=self.cache, start_stage=number, stop_stage=number + 1
            )
            ((record,),) = passage.records
            gone = dropped_indices(record.kept, record.tokens_before)
            self.dropped.append(hidden[:, segment.positions(gone)[0]])
        self.left = passage.segments[0]
        self.rows = passage.hidden if self.stages < len(config.stages) else None

    @torch.no_grad()
    def read(self, text: int) -> None:
        """Read a question of `text` tokens, to the logits of its last position."""
        hidden = torch.randn(1, text, self.config.backbone.hidden_size)
        for number in range(-1, self.stages):
            if number >= 0 and self.config.stages[number].transfer:
                hidden = self.model.transv[number].tell(hidden, self.dropped[number])
            start = None if number < 0 else number
            hidden = self.model.run(
                hidden, cache=self.cache, start_stage=start, stop_stage=number + 1
            ).hidden
        if self.rows is not None:
            joined = torch.cat([self.rows, hidden], 1)
            segment = replace(self.left, length=joined.shape[1])
            hidden = self.model.run(
                joined, (segment,), cache=self.cache, start_stage=self.stages
            ).hidden
        self.model.logits(hidden[:, -1:])
