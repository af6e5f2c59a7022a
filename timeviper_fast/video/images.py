"""Image files as videos: a directory of images, a single image or an animation, with Pillow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from timeviper_fast.errors import VideoError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = ["AnimationReader", "ImagesReader", "images_in", "is_animation", "is_image"]

_IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# in other formats, the frames that Pillow counts are pages, or views of one scene
_ANIMATED = frozenset({"GIF", "PNG", "WEBP"})


class AnimationReader:
    """An animated GIF, PNG or WebP: its frames as displayed, each composited over the previous."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.notes: list[str] = []
        delays: list[float] = []
        try:
            with _opened_image(path) as image:
                self.size = (image.height, image.width)
                # a PNG may begin with a still image for viewers without animation
                self._first = int(bool(image.info.get("default_image")))
                for number in range(self._first, image.n_frames):
                    self.missing = image.n_frames - number
                    image.seek(number)
                    image.load()
                    milliseconds = image.info.get("duration") or 0
                    # browsers show frames of 10 ms or less for a tenth of a second
                    delays.append(milliseconds / 1000 if milliseconds > 10 else 0.1)
                self.missing = 0
        except _UnreadableImage as error:
            if not delays:
                raise VideoError(f"{path}: no frame of it can be decoded ({error})") from error
        ends = torch.tensor([0.0, *delays], dtype=torch.float64).cumsum(0)
        self.seconds, self.duration = ends[:-1], float(ends[-1])
        self.fps, self.skipped = len(delays) / self.duration, 0

    def read(self, positions: list[int], faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        with _opened_image(self._path) as image:
            for position in positions:
                image.seek(self._first + position)
                yield position, _to_rgb(image)


class ImagesReader:
    """A video given as image files; the first one decides the size.

    `timeline` is (seconds, fps, duration).
    """

    def __init__(
        self, path: Path, files: list[Path], timeline: tuple[Tensor, float, float]
    ) -> None:
        if not files:
            raise VideoError(
                f"{path}: the directory holds no images ({', '.join(sorted(_IMAGES))})"
            )
        self._files = files
        self.missing = self.skipped = 0
        self.notes: list[str] = []
        self.seconds, self.fps, self.duration = timeline
        faults: list[str] = []
        pictures = (_load_image(file, faults) for file in files)
        first = next((picture for picture in pictures if picture is not None), None)
        if first is None:
            raise VideoError(f"{path}: no image of it can be decoded ({faults[0]})")
        self.size = (first.shape[0], first.shape[1])

    def read(self, positions: list[int], faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            picture = _load_image(self._files[position], faults)
            if picture is None:
                continue
            if picture.shape[:2] != self.size:
                have, first = (f"{w}x{h}" for h, w in (picture.shape[:2], self.size))
                faults.append(f"{self._files[position].name} is {have}, the first image {first}")
                continue
            yield position, picture


def is_image(path: Path) -> bool:
    """Whether the file name has the suffix of an image format."""
    return path.suffix.lower() in _IMAGES


def images_in(path: Path) -> list[Path]:
    """The image files of a directory in natural order of their names."""

    def natural(file: Path) -> list[Any]:
        parts = re.split(r"(\d+)", file.name)
        return [int(part) if i % 2 else part.lower() for i, part in enumerate(parts)]

    files = (file for file in path.iterdir() if not file.name.startswith(".") and file.is_file())
    return sorted(filter(is_image, files), key=natural)


class _UnreadableImage(VideoError):
    """An image file that Pillow cannot read."""


@contextmanager
def _opened_image(file: Path) -> Iterator[Any]:
    """The file opened by Pillow; errors in the block become _UnreadableImage."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        remedy = 'pip install "timeviper-fast[vision]"'
        raise VideoError(f"images need the package pillow; {remedy}") from error
    try:
        # pass a stream: given a path, Pillow memory-maps TIFF files and scrambles rotated ones
        with file.open("rb") as stream, Image.open(stream) as image:
            yield image
    except VideoError:
        raise
    except (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _UnreadableImage(f"{file.name}: {' '.join(str(error).split())}") from error


def is_animation(file: Path) -> bool:
    """Whether an image shows several frames one after the other."""
    try:
        with _opened_image(file) as image:
            return _is_animated(image)
    except _UnreadableImage:
        return False


def _is_animated(image: PillowImage) -> bool:
    return image.format in _ANIMATED and bool(getattr(image, "is_animated", False))


def _load_image(file: Path, faults: list[str]) -> np.ndarray | None:
    """(H, W, 3) uint8, upright; None if it cannot be decoded, with the reason added to `faults`."""
    try:
        with _opened_image(file) as image:
            if _is_animated(image):
                what = "an animated image is a video of its own and no frame of a directory"
                raise VideoError(f"{file}: {what}")
            from PIL import ImageOps

            return _to_rgb(ImageOps.exif_transpose(image))
    except _UnreadableImage as error:
        faults.append(str(error))
        return None


def _to_rgb(image: PillowImage) -> np.ndarray:
    """(H, W, 3) uint8 by Pillow's conversion, except for 16-bit pixels, which it would clip."""
    if image.mode.startswith("I;16"):
        # keep the high byte, as Pillow does for 16-bit colours
        grey = np.asarray(image) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        rule = "pixels must be of 8 or 16 bits"
        raise ValueError(f"{rule}, got Pillow's mode {image.mode}, which has no known range")
    return np.asarray(image.convert("RGB"))
