"""A tiny model with random weights, and a video file of a moving square."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import write_video


def tiny_model(seed: int = 0) -> TimeViper:
    """A tiny TimeViper with every part of the real model and seeded random weights.

    The TransV gates are open (alpha 0.5), so the transfer has an effect. The vocabulary head
    favours printable ASCII, so a terminal can show a greedy answer.
    """
    model = TimeViper(preset("tiny"), byte_tokenizer())
    init_weights(model, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".alpha"):
                parameter.fill_(0.5)
        model.backbone.lm_head.weight[127:] = 0
        model.backbone.lm_head.weight[:32] = 0
    return model.eval()


def square_video(
    path: str | Path, *, seconds: int = 60, fps: int = 24, height: int = 360, width: int = 640
) -> Path:
    """Write an H.264 file of a bright square that crosses a sky of changing colours and back."""
    path = Path(path)
    scene = _scene(seconds * fps, height, width)
    write_video(path, scene, fps, options={"preset": "ultrafast"})
    return path


def _scene(frames: int, height: int, width: int) -> Iterator[torch.Tensor]:
    """(height, width, 3) uint8 frames, the same for the same arguments."""
    rows = torch.linspace(0, 1, height).view(-1, 1, 1)
    side = height // 5
    for i in range(frames):
        turn = torch.tensor([0.0, 2.1, 4.2]) + 6.28 * i / frames
        sky = (127 + 80 * torch.sin(turn + 2 * rows)).expand(height, width, 3)
        picture = sky.to(torch.uint8).clone()
        way = abs((2 * i / frames) % 2 - 1)  # 1 -> 0 -> 1
        left = int((1 - way) * (width - side))
        picture[2 * side : 3 * side, left : left + side] = torch.tensor([250, 230, 60])
        yield picture
