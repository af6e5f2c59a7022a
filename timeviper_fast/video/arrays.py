"""Frames in arrays: in memory, in an .npy file, in an .npz file with their times, or in a list."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timeviper_fast.errors import ArgumentError, VideoError
from timeviper_fast.video.images import is_pillow_image, rgb_of

__all__ = ["ArrayReader", "ListReader", "load_array", "timeline"]

# Default frame rate of frames without times. VideoChat-Flash uses it for image folders.
_DEFAULT_FPS = 1.0


class ArrayReader:
    """Frames in memory, or in a memory-mapped .npy file."""

    def __init__(
        self,
        name: str,
        frames: Tensor | np.ndarray,
        seconds: np.ndarray | None,
        fps: float | None,
    ) -> None:
        array = _values(f"{name}: frames", frames) if isinstance(frames, Tensor) else frames
        if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
            have = f"shape {tuple(array.shape)}"
            raise VideoError(f"{name}: frames must be (frames, height, width, 3), got {have}")
        if array.dtype != np.uint8:
            raise VideoError(f"{name}: frames must be of dtype uint8, got {array.dtype}")
        self._array = array
        self.size = (array.shape[1], array.shape[2])
        self.missing = self.skipped = 0
        self.notes: list[str] = []
        self.seconds, self.fps, self.duration = timeline(name, len(array), seconds, fps)

    def read(self, positions: list[int], faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            yield position, self._array[position]


class ListReader:
    """Frames in a list: arrays, tensors or Pillow images, all of one size."""

    def __init__(self, name: str, frames: Sequence[Any], fps: float | None) -> None:
        if not frames:
            raise VideoError(f"{name}: the list must hold at least one frame, got none")
        self._frames = frames
        self.missing = self.skipped = 0
        self.notes: list[str] = []
        self.seconds, self.fps, self.duration = timeline(name, len(frames), None, fps)
        sizes = [_size(f"{name}: frame {i}", frame) for i, frame in enumerate(frames)]
        self.size = sizes[0]
        for i, size in enumerate(sizes):
            if size != sizes[0]:
                have, first = (f"{width}x{height}" for height, width in (size, sizes[0]))
                raise VideoError(f"{name}: frame {i} must be {first} as the first one, got {have}")

    def read(self, positions: list[int], faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            frame = self._frames[position]
            if isinstance(frame, Tensor):
                yield position, _values(f"frame {position}", frame)
            elif isinstance(frame, np.ndarray):
                yield position, frame
            else:
                yield position, rgb_of(frame)


def _values(name: str, x: Tensor) -> np.ndarray:
    """The values of a tensor, which must have some that NumPy can hold."""
    _expect_dense(name, x)
    if x.dtype != torch.uint8:
        raise VideoError(
            f"{name} must be of dtype uint8, got {str(x.dtype).removeprefix('torch.')}"
        )
    return x.detach().cpu().numpy()


def _expect_dense(name: str, x: Tensor) -> None:
    kind = ""
    if x.is_meta:
        kind = "one on the meta device, which has no values"
    elif x.is_nested:
        kind = "a nested one"
    elif x.layout != torch.strided:
        kind = f"layout {str(x.layout).removeprefix('torch.')}"
    if kind:
        raise VideoError(f"{name} must be a dense tensor, got {kind}")


def _size(name: str, frame: Any) -> tuple[int, int]:
    """(height, width) of a frame of a list, checked."""
    if is_pillow_image(frame):
        # a picture in memory may still lie on its side
        height, width, _ = rgb_of(frame).shape
        return height, width
    rule = "must be (height, width, 3) uint8, or a Pillow image"
    if not isinstance(frame, (Tensor, np.ndarray)):
        raise VideoError(f"{name} {rule}, got {type(frame).__name__}")
    if isinstance(frame, Tensor):
        _expect_dense(name, frame)
    shape, dtype = tuple(frame.shape), str(frame.dtype).removeprefix("torch.")
    if len(shape) != 3 or shape[-1] != 3 or 0 in shape or dtype != "uint8":
        raise VideoError(f"{name} {rule}, got shape {shape} {dtype}")
    return shape[0], shape[1]


def timeline(
    name: str, frames: int, seconds: np.ndarray | None, fps: float | None
) -> tuple[Tensor, float, float]:
    """(seconds, fps, duration) of frames with given times, or with a rate only."""
    if seconds is None:
        rate = fps or _DEFAULT_FPS
        return torch.arange(frames, dtype=torch.float64) / rate, rate, frames / rate
    if fps is not None:
        raise ArgumentError("open_video", "fps", "be left out where the file has seconds", fps)
    if seconds.dtype.kind not in "fiu":
        raise VideoError(f"{name}: seconds must be numbers, got dtype {seconds.dtype}")
    times = torch.from_numpy(seconds.astype(np.float64))
    if times.shape != (frames,):
        have = tuple(times.shape)
        raise VideoError(f"{name}: seconds must have one time per frame ({frames}), got {have}")
    if not (torch.isfinite(times).all() and (times.diff() > 0).all()):
        raise VideoError(f"{name}: seconds must be finite and ascend, got times that do not")
    span = float(times[-1] - times[0])
    # the last frame gets the average duration of the others
    rate = (frames - 1) / span if span else _DEFAULT_FPS
    return times, rate, frames / rate


def load_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(frames, seconds or None) of an .npy file, memory-mapped, or of an .npz file."""
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise VideoError(f"{path}: it cannot be read as a NumPy file ({error})") from error
    if "frames" not in arrays:
        names = ", ".join(arrays) or "none"
        raise VideoError(f"{path}: it must hold an array named frames, got {names}")
    return arrays["frames"], arrays.get("seconds")
