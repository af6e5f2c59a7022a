"""The video file and the tiny model with random weights that `timeviper-fast demo` uses.

Importing this imports no torch, so that `timeviper-fast demo --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from timeviper_fast.errors import ArgumentError
from timeviper_fast.presets import preset

if TYPE_CHECKING:
    from torch import Tensor

    from timeviper_fast.timeviper import TimeViper

__all__ = ["QUESTION", "tiny_model", "write_demo_video"]

QUESTION = "What moves across the picture, and when does it turn back?"


def tiny_model(seed: int = 0) -> TimeViper:
    """A tiny TimeViper with every part of the real model and seeded random weights.

    The TransV gates are open (alpha 0.5), so the transfer has an effect. The vocabulary head
    favours printable ASCII, so a terminal can show a greedy answer.
    """
    import torch

    from timeviper_fast.model.initialize import init_weights
    from timeviper_fast.text.byte_tokenizer import byte_tokenizer
    from timeviper_fast.timeviper import TimeViper

    model = TimeViper(preset("tiny"), byte_tokenizer())
    init_weights(model, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".alpha"):
                parameter.fill_(0.5)
        model.backbone.lm_head.weight[127:] = 0
        model.backbone.lm_head.weight[:32] = 0
    return model.eval()


def write_demo_video(
    path: str | Path,
    *,
    seconds: int = 60,
    fps: int = 24,
    height: int = 360,
    width: int = 640,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write an H.264 file of a bright square that crosses a sky of changing colours and back.

    Args:
        path: the file to write; its directory is made.
        seconds, fps: length and rate.
        height, width: pixels, even numbers.
        progress: called with (frames written, all frames).

    Raises:
        ValueError: a length, rate or size that no such file can have.
    """
    from timeviper_fast.video import write_video

    if seconds < 1 or fps < 1 or height < 16 or width < 16 or height % 2 or width % 2:
        raise ArgumentError(
            "write_demo_video",
            "seconds and fps",
            "be positive, height and width even and at least 16",
            f"{seconds} s, {fps} fps, {height} x {width}",
        )
    path = Path(path)
    scene = _scene(seconds * fps, height, width, progress or (lambda done, total: None))
    write_video(path, scene, fps, options={"preset": "ultrafast"})
    return path


def _scene(
    frames: int, height: int, width: int, progress: Callable[[int, int], None]
) -> Iterator[Tensor]:
    """(height, width, 3) uint8 frames, the same for the same arguments."""
    import torch

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
        progress(i + 1, frames)
