"""A short video of the synthetic world, and three questions about it with their true answers.

For tests and examples also a tiny model with random weights, and a video of a moving square.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from timeviper_fast.dataset.randomness import hash63
from timeviper_fast.errors import ArgumentError, fail, is_integer
from timeviper_fast.evaluation.synthetic import draw_scene
from timeviper_fast.model.initialize import init_weights
from timeviper_fast.presets import preset
from timeviper_fast.synthetic.pen import SIDE
from timeviper_fast.synthetic.world import World
from timeviper_fast.text.byte_tokenizer import byte_tokenizer
from timeviper_fast.timeviper import TimeViper
from timeviper_fast.video import write_video

__all__ = ["DemoVideo", "tiny_model", "write_demo_video"]

_TASKS = ("sign", "colour", "chain")
_SHORTEST = 32  # seconds, so that every needle finds a frame of its own
# pixels per side of the file; the model sees SIDE
_FILE_SIDE = 5 * SIDE
# rendered at a time
_FRAMES = 16


class DemoVideo:
    """A video of the synthetic world, one frame per second.

    It shows a sign, shapes in colours and a chain of cards among plain frames. No frame of it was
    in the training of the embedded model, whose worlds have other seeds.

    Args:
        seed: 0 or more; each seed has its own frames and questions.
        seconds: length, 32 or more.

    Attributes:
        questions: one about the sign, one about a colour, one about a chain of cards, each with
            `text` and the true `answer`.
    """

    def __init__(self, seed: int = 0, seconds: int = 64) -> None:
        if not (is_integer(seed) and 0 <= seed < 2**63):
            fail("DemoVideo", "seed", "be an integer from 0 to 2^63 - 1", seed)
        if not (is_integer(seconds) and seconds >= _SHORTEST):
            fail("DemoVideo", "seconds", f"be an integer of {_SHORTEST} or more", seconds)
        self.seed, self.seconds = seed, seconds
        self._world = World(hash63("demo world", seed))
        draw = random.Random(hash63("demo places", seed))
        depths = {task: draw.random() for task in _TASKS}
        scene = draw_scene(hash63("demo scene", seed), seconds, depths)
        self._needles = scene.needles
        self.questions = tuple(sorted(scene.questions, key=lambda q: _TASKS.index(q.task)))

    def frames(self) -> np.ndarray:
        """All frames as the model sees them: (seconds, 48, 48, 3) uint8."""
        return np.concatenate(list(self._render(SIDE)))

    def write(self, path: str | Path, progress: Callable[[int, int], None] | None = None) -> Path:
        """Write an H.264 file of 240 x 240 pixels, which a person can watch.

        Args:
            path: the file; its directory is made.
            progress: called with (frames written, all frames).

        Raises:
            VideoError: PyAV is missing, or the file cannot be written.
        """
        write_video(path, self._one_by_one(progress), 1, options={"preset": "veryfast"})
        return Path(path)

    def _one_by_one(self, progress: Callable[[int, int], None] | None) -> Iterator[np.ndarray]:
        done = 0
        for batch in self._render(_FILE_SIDE):
            for frame in batch:
                yield frame
                done += 1
                if progress is not None:
                    progress(done, self.seconds)

    def _render(self, side: int) -> Iterator[np.ndarray]:
        for start in range(0, self.seconds, _FRAMES):
            numbers = range(start, min(start + _FRAMES, self.seconds))
            yield self._world.render(numbers, [self._needles.get(i) for i in numbers], side)


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
) -> Iterator[torch.Tensor]:
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
        progress(i + 1, frames)
