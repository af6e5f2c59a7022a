"""A directory that fills with images: each is taken once it is whole, in natural order of names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import numpy as np

from timeviper_fast.video.directory import natural
from timeviper_fast.video.film import Shown, Tally
from timeviper_fast.video.growing import Patience
from timeviper_fast.video.images import is_image, load_image

__all__ = ["Arrivals", "arriving"]

# seconds; a file that stays unreadable so long where no quiet time is set is given up
_GIVEN_UP = 10.0


class Arrivals(NamedTuple):
    """How a directory's files become frames.

    Attributes:
        fps: frames per second; None takes the files' times of modification, from the first one's.
        settle: seconds for which a file must be unchanged. Files that arrive out of order within
            this time are put in order.
    """

    fps: float | None
    settle: float


def arriving(path: Path, how: Arrivals, patience: Patience, tally: Tally) -> Iterator[Shown]:
    """The images of a directory as they arrive.

    Files are images by their suffix. One that cannot be decoded yet is tried again. It keeps its
    time and counts as lost if it stays unreadable, or has another size than the first image. A file
    that belongs before one that was taken already is left out and counted in the notes.
    """
    queue = _Queue(path, how.settle, patience)
    size: tuple[int, ...] = ()
    start: float | None = None
    number = 0
    while True:
        is_over = patience.is_over
        try:
            found = queue.next(is_over)
        except FileNotFoundError:
            tally.end = "the directory vanished while it was read"
            return
        tally.late = queue.late
        if found is None:
            if is_over:
                return
            # listing a hundred thousand files takes long: do it for a tenth of the time at most
            patience.wait(10 * queue.cost)
            continue
        picture, file, modified = found
        start = modified if start is None else start
        second = number / how.fps if how.fps else modified - start
        number += 1
        size = size or (() if picture is None else picture.shape)
        if picture is None or picture.shape != size:
            tally.lose(queue.fault if picture is None else f"{file.name} has another size")
            continue
        tally.last = 1 / how.fps if how.fps else 0.0
        yield Shown(second, partial(_same, picture))


def _same(picture: np.ndarray) -> np.ndarray:
    return picture


class _Found(NamedTuple):
    """The next file; its picture is None if it is unreadable."""

    picture: np.ndarray | None
    file: Path
    modified: float


class _Queue:
    """The files of a directory that have not been taken."""

    def __init__(self, path: Path, settle: float, patience: Patience) -> None:
        self._path, self._settle, self._patience = path, settle, patience
        self._done: set[str] = set()
        self._passed: Path | None = None
        # what a file was like when it was last looked at, and since when it is unchanged
        self._known: dict[str, tuple[tuple[int, int], float]] = {}
        self.late, self.cost = 0, 0.0
        self.fault = ""

    def next(self, is_over: bool) -> _Found | None:
        """The next file, if it is whole or given up; None to look again later."""
        for file in self._waiting():
            age = self._unchanged(file)
            if age is None:
                # it vanished since the directory was listed
                continue
            if not is_over and age < self._settle:
                return None
            faults: list[str] = []
            modified = self._known[file.name][0][1] / 1e9
            picture = load_image(file, faults)
            if picture is None and not is_over:
                limit = _GIVEN_UP if self._patience.quiet is None else self._patience.quiet
                if age < max(limit, self._settle):
                    return None
            self.fault = faults[0] if faults else ""
            self._done.add(file.name)
            self._passed = file
            del self._known[file.name]
            return _Found(picture, file, modified)
        return None

    def _waiting(self) -> list[Path]:
        """The files that were not taken, in natural order; late ones are counted and left out."""
        before = monotonic()
        names = [entry.name for entry in os.scandir(self._path) if entry.name not in self._done]
        self.cost = monotonic() - before
        files = [self._path / name for name in names if not name.startswith(".")]
        files = sorted(
            (file for file in files if is_image(file)), key=lambda file: natural(file.name)
        )
        for file in files:
            if file.name not in self._known:
                self._patience.grew()
        if self._passed is not None:
            behind = [file for file in files if natural(file.name) < natural(self._passed.name)]
            self.late += len(behind)
            self._done.update(file.name for file in behind)
            files = files[len(behind) :]
        return files

    def _unchanged(self, file: Path) -> float | None:
        """Seconds since which the file is as it is; None if it is gone."""
        try:
            status = file.stat()
        except FileNotFoundError:
            return None
        state, now = (status.st_size, status.st_mtime_ns), monotonic()
        if file.name not in self._known or self._known[file.name][0] != state:
            self._known[file.name] = (state, now)
            self._patience.grew()
        return now - self._known[file.name][1]
