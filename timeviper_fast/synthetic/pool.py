"""Frames that are rendered and encoded once, from which many videos are drawn.

With a frozen vision encoder, a video of thousands of frames is then only an index into memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timeviper_fast.errors import fail
from timeviper_fast.model.projector import Projector
from timeviper_fast.model.vision.encoder import VisionEncoder
from timeviper_fast.synthetic.glyphs import DIGITS, GLYPHS, LETTERS
from timeviper_fast.synthetic.lessons import to_pixels
from timeviper_fast.synthetic.needle import COLOURS, Needle
from timeviper_fast.synthetic.shapes import SHAPES
from timeviper_fast.synthetic.world import World

__all__ = ["FramePool", "PoolSize", "every_needle"]

_BATCH = 256
# distance between frame numbers, so that no two frames are of the same shot (32 frames)
_STRIDE = 33


@dataclass(frozen=True)
class PoolSize:
    """Number of frames of a pool: the plain ones, and those of each sign, shape and link."""

    plain: int = 12_000
    signs: int = 8
    shapes: int = 40
    links: int = 8

    def copies(self, needle: Needle) -> int:
        """Number of frames that show this needle."""
        if needle.kind in SHAPES:
            return self.shapes
        return self.signs if needle.kind == "sign" else self.links


def every_needle() -> list[Needle]:
    """All 240 signs, 24 shapes and 792 links. A link's two letters differ."""
    signs = [Needle("sign", a + b) for a in LETTERS for b in DIGITS]
    shapes = [Needle(shape, colour=colour) for shape in SHAPES for colour in COLOURS]
    links = [Needle("link", a + b) for a in LETTERS for b in GLYPHS if a != b]
    return signs + shapes + links


class FramePool:
    """Merged features of many frames of a world, sorted by needle.

    Args:
        features: (n, tokens, width); the plain frames come first.
        plain: number of plain frames.
        places: {needle: (index of its first frame, number of its frames)}.
    """

    def __init__(
        self, features: Tensor, plain: int, places: Mapping[Needle, tuple[int, int]]
    ) -> None:
        self.features, self.plain, self.places = features, plain, places

    @classmethod
    @torch.no_grad()
    def encode(
        cls,
        world: World,
        vision: VisionEncoder,
        projector: Projector,
        size: PoolSize | None = None,
        dtype: torch.dtype = torch.float16,
        on_frames: Callable[[np.ndarray, int], None] | None = None,
    ) -> FramePool:
        """Render and encode the frames; features are stored in `dtype`.

        Pools of different seeds share no frame. `on_frames` is called with each rendered batch,
        (n, 48, 48, 3) uint8, plain frames first, and the number of all frames.
        """
        clip = max(vision.config.clip_frames, projector.config.clip_frames)
        if clip > 1:
            # neighbours of the pool are no neighbours of a video
            fail("FramePool", "frames per clip", "be 1 in encoder and projector", clip)
        size = size or PoolSize()
        shown: list[Needle | None] = [None] * size.plain
        places = {}
        for needle in every_needle():
            places[needle] = (len(shown), size.copies(needle))
            shown += [needle] * size.copies(needle)
        parts, weight = [], next(vision.parameters())
        for start in range(0, len(shown), _BATCH):
            batch = shown[start : start + _BATCH]
            numbers = _STRIDE * np.arange(start, start + len(batch))
            rendered = world.render(numbers, batch)
            pixels = to_pixels(rendered).to(weight.device, weight.dtype)
            parts.append(projector.merge(vision(pixels)).to("cpu", dtype))
            if on_frames is not None:
                on_frames(rendered, len(shown))
        return cls(torch.cat(parts), size.plain, places)

    def draw(self, frames: int, needles: Mapping[int, Needle], seed: int) -> Tensor:
        """Features of a video, (frames, tokens, width) float32, with no frame twice.

        Args:
            frames: length of the video, at most the pool's plain frames.
            needles: {frame number: needle}; the other frames are plain.
            seed: chooses the pool's frames.
        """
        if frames > self.plain:
            fail("FramePool", "frames", f"be at most its {self.plain} plain frames", frames)
        chance = random.Random(seed)
        chosen = torch.tensor(chance.sample(range(self.plain), frames))
        groups: dict[Needle, list[int]] = {}
        for number, needle in needles.items():
            groups.setdefault(needle, []).append(number)
        for needle, numbers in groups.items():
            chosen[numbers] = torch.tensor(self._copies(needle, len(numbers), chance))
        return self.features[chosen].float()

    def _copies(self, needle: Needle, count: int, chance: random.Random) -> Sequence[int]:
        first, copies = self.places[needle]
        if count > copies:
            fail("FramePool", "needles", f"show {needle} at most {copies} times", count)
        return chance.sample(range(first, first + copies), count)
