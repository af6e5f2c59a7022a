"""Annotation files and short videos for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timeviper_fast.config import VisionConfig
from timeviper_fast.dataset.sample import Cost, Draw, Limits, Sample
from timeviper_fast.errors import DataError
from timeviper_fast.video import write_video

# an arbitrary size: no test of this folder runs an encoder of this shape
VISION = VisionConfig(
    image_size=16, patch_size=8, hidden_size=32, intermediate_size=32, num_attention_heads=2
)


def film(path: Path, frames: int = 8, fps: int = 2, grey: int = 0, side: int = 32) -> Path:
    """A video in which frame i is of grey level grey + 8 i."""
    levels = (np.full((side, side, 3), grey + 8 * i, np.uint8) for i in range(frames))
    write_video(path, levels, fps, options={"crf": "4"})
    return path


def talk(*texts: str) -> list[dict[str, str]]:
    """LLaVA's form of a conversation that a human begins."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def turns(*texts: str) -> tuple[dict[str, str], ...]:
    """A conversation in the form of chat templates."""
    return tuple(
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    )


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Numbers:
    """A source whose row i costs numbers[i] text tokens and says i; negative ones cannot be used."""

    def __init__(self, name: str, numbers: Sequence[int]) -> None:
        self.name, self.numbers = name, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def cost(self, index: int, draw: Draw) -> Cost:
        if self.numbers[index] < 0:
            raise DataError(f"{self.name}:{index}", "it is faulty")
        return Cost(0, self.numbers[index])

    def load(self, index: int, draw: Draw) -> Sample:
        if self.numbers[index] % 10 == 9:
            raise DataError(f"{self.name}:{index}", "it cannot be read")
        pixels = torch.full((1, 3, 2, 2), float(draw.seed % 1000))
        return Sample(turns("Which?", f"{self.name} {index}"), pixels)

    def limits(self, limits: Limits) -> Numbers:
        return self
