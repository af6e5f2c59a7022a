"""Frames to 384 x 384: `resize_bicubic` against Pillow, called once for each frame."""

from __future__ import annotations

import numpy as np
import PIL
import torch
from PIL import Image

from benchmarks.cpu.measure import Comparison, largest, still
from timeviper_fast.video.preprocess import resize_bicubic

SIZE = 384
# (frames, height, width): 1080p, 720p, 360p, then 1080p upright. In one call Pillow 13 runs the
# vertical pass of upright frames first: that is less work and gives other pixels.
ROWS = ((8, 1080, 1920), (16, 720, 1280), (32, 360, 640), (8, 1920, 1080))
FACTS = {"dtype": "uint8", "size": SIZE, "pillow": PIL.__version__}


def row(frames: int, height: int, width: int, small: bool) -> Comparison:
    shape = [1 if small else frames, height, width, 3]
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    def resize(form: str) -> torch.Tensor:
        return resize_bicubic(rgb, SIZE, SIZE) if form == "ours" else pillow(rgb)

    forward = {"forward": still(resize)}
    return Comparison(("ours", "pillow"), {"shape": shape}, forward, {}, largest)


def pillow(rgb: torch.Tensor) -> torch.Tensor:
    """(T, 3, SIZE, SIZE) uint8."""
    bicubic = Image.Resampling.BICUBIC
    images = [Image.fromarray(frame).resize((SIZE, SIZE), bicubic) for frame in rgb.numpy()]
    return torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2)
