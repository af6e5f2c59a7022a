"""A short video of the synthetic world, and three questions about it with their true answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from timeviper_fast.dataset.randomness import hash63
from timeviper_fast.errors import fail, is_integer
from timeviper_fast.evaluation.synthetic import draw_scene
from timeviper_fast.synthetic.pen import SIDE
from timeviper_fast.synthetic.world import World
from timeviper_fast.video import write_video

__all__ = ["DemoVideo"]

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
