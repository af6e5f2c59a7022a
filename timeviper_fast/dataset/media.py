"""The time of each frame of a video, looked up once per file and optionally cached on disk."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from timeviper_fast.dataset.files import media_key, write_whole
from timeviper_fast.errors import VideoError
from timeviper_fast.video import open_video
from timeviper_fast.video.images import is_animation, is_image, is_picture

__all__ = ["MediaIndex", "Timeline"]


class Timeline(NamedTuple):
    """The frame times of a video, as `Video` has them: (T,) float64 seconds, rate and duration."""

    seconds: Tensor
    fps: float
    duration: float


class MediaIndex:
    """The timelines of media files; at most the first frame is decoded.

    Args:
        folder: cache of timelines, by the file's path, size and modification time; None keeps them
            in memory only.
        memory: most frame times kept in memory (8 bytes each).
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, memory: int = 1 << 24) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self._memory, self._frames = memory, 0
        self._known: dict[Path, Timeline] = {}

    def timeline(self, path: Path) -> Timeline:
        """The timeline of a video; that of an image is one frame at 0 s.

        Raises:
            FileNotFoundError: the file does not exist.
            VideoError: the file is not a video, or is damaged.
        """
        found = self._known.get(path)
        return found if found is not None else self._keep(path, self._look_up(path))

    def scan(
        self, paths: Iterable[Path], threads: int = 8
    ) -> Iterator[tuple[Path, Timeline | str]]:
        """Look up many files in threads; yield each with its timeline, or the reason it has none.

        Args:
            paths: a file that is named several times is looked up and given once.
            threads: files that are opened at the same time.
        """
        with ThreadPoolExecutor(threads) as pool:
            waiting = iter(dict.fromkeys(paths))
            while batch := list(islice(waiting, 16 * threads)):
                for path, found in zip(batch, pool.map(self._attempt, batch)):
                    if not isinstance(found, str):
                        self._keep(path, found)
                    yield path, found

    def _attempt(self, path: Path) -> Timeline | str:
        try:
            return self._known.get(path) or self._look_up(path)
        except (OSError, ValueError) as error:
            return str(error)

    def _keep(self, path: Path, timeline: Timeline) -> Timeline:
        if path not in self._known:
            self._known[path] = timeline
            self._frames += len(timeline.seconds)
            while self._frames > self._memory and len(self._known) > 1:
                oldest = next(iter(self._known))
                self._frames -= len(self._known.pop(oldest).seconds)
        return timeline

    def _look_up(self, path: Path) -> Timeline:
        """The timeline from the cache or the media file. Several threads call this."""
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or directory")
        if self.folder is None:
            return _open(path)
        key = media_key(path)
        kept = self.folder / key[:2] / f"{key}.npz"
        try:
            return _loaded(kept)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            # the entry is missing or damaged
            timeline = _open(path)
        buffer = io.BytesIO()
        rate = np.array([timeline.fps, timeline.duration])
        np.savez_compressed(buffer, seconds=timeline.seconds.numpy(), rate=rate)
        write_whole(kept, buffer.getvalue())
        return timeline


def _loaded(path: Path) -> Timeline:
    with np.load(path, allow_pickle=False) as file:
        fps, duration = file["rate"].tolist()
        return Timeline(torch.from_numpy(file["seconds"]), fps, duration)


def _open(path: Path) -> Timeline:
    # the header of most images is enough; open_video raises the error for the others
    if path.is_file() and is_image(path) and is_picture(path) and not is_animation(path):
        return Timeline(torch.zeros(1, dtype=torch.float64), 1.0, 1.0)
    with open_video(path) as video:
        if not video.num_frames:
            raise VideoError(f"{path}: it has no frames")
        return Timeline(video.seconds, video.fps, video.duration)
