"""Image files as videos: a directory of images, a single image or an animation, with Pillow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from timeviper_fast.errors import VideoError
from timeviper_fast.video.bound import expect_few_pixels
from timeviper_fast.video.packets import Progress

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = [
    "AnimationReader",
    "ImagesReader",
    "is_animation",
    "is_image",
    "is_picture",
    "is_pillow_image",
    "load_image",
    "rgb_of",
]

_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
# Suffixes of images. Pillow reads some of them with a plugin only, such as .heic.
_IMAGES = (
    ".apng", ".avif", ".avifs", ".bmp", ".dds", ".dib", ".exr", ".gif", ".heic", ".heif", ".icns",
    ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx",
    ".jxl", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".sgi",
    ".tga", ".tif", ".tiff", ".webp", ".xbm", ".xpm", *_RAW,
)  # fmt: skip
# formats with bytes at their start that other files do not have
_BY_CONTENT = (
    "AVIF", "BMP", "DDS", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "PSD", "QOI", "TIFF",
    "WEBP",
)  # fmt: skip
# in other formats, the frames that Pillow counts are pages, or views of one scene
_ANIMATED = frozenset({"AVIF", "GIF", "PNG", "WEBP"})


class AnimationReader:
    """An animated GIF, PNG, WebP or AVIF: its frames as displayed, each composited over the
    previous, turned as EXIF says."""

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self._path = path
        self.notes: list[str] = []
        delays: list[float] = []
        try:
            with _opened_image(path) as image:
                # a PNG may begin with a still image for viewers without animation
                self._first = int(bool(image.info.get("default_image")))
                for number in range(self._first, image.n_frames):
                    self.missing = image.n_frames - number
                    image.seek(number)
                    image.load()
                    if progress is not None:
                        progress("scan", number + 1, image.n_frames)
                    if not delays:
                        upright = _upright(image)
                        self.size = (upright.height, upright.width)
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
                yield position, rgb_of(image)


class ImagesReader:
    """A video given as image files; the first one decides the size.

    `timeline` is (seconds, fps, duration); `notes` say what is left out; `is_image` tells one image
    given by its name from a directory.
    """

    def __init__(
        self,
        name: str,
        files: list[Path],
        timeline: tuple[Tensor, float, float],
        notes: Sequence[str] = (),
        is_image: bool = False,
    ) -> None:
        self._files, self.notes, self.is_image = files, [*notes], is_image
        self.missing = self.skipped = 0
        self.seconds, self.fps, self.duration = timeline
        faults: list[str] = []
        pictures = (load_image(file, faults) for file in files)
        first = next((picture for picture in pictures if picture is not None), None)
        if first is None:
            raise VideoError(f"{name}: no image of it can be decoded ({faults[0]})")
        self.size = (first.shape[0], first.shape[1])

    def read(self, positions: list[int], faults: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        for position in positions:
            picture = load_image(self._files[position], faults)
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


def is_picture(path: Path) -> bool:
    """Whether the file begins as an image does that Pillow reads; False without Pillow."""
    if not find_spec("PIL"):
        return False
    try:
        with _opened_image(path, _BY_CONTENT):
            return True
    except _UnreadableImage:
        return False


def is_pillow_image(value: object) -> bool:
    """Whether `value` is an image of Pillow, which is not imported for this."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


class _UnreadableImage(VideoError):
    """An image file that Pillow cannot read."""


@contextmanager
def _opened_image(file: Path, formats: tuple[str, ...] | None = None) -> Iterator[Any]:
    """The file opened by Pillow; errors in the block become _UnreadableImage."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        remedy = 'pip install "timeviper-fast[vision]"'
        raise VideoError(f"images need the package pillow; {remedy}") from error
    if formats:
        Image.init()
        formats = tuple(name for name in formats if name in Image.OPEN)
    if file.suffix.lower() in _RAW:
        # Pillow would show the thumbnail in it
        raise _UnreadableImage(f"{file.name}: raw photographs are not read")
    try:
        # pass a stream: given a path, Pillow memory-maps TIFF files and scrambles rotated ones
        with file.open("rb") as stream, Image.open(stream, formats=formats) as image:
            expect_few_pixels(file, *image.size)
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


def load_image(file: Path, faults: list[str]) -> np.ndarray | None:
    """(H, W, 3) uint8, upright; None if it cannot be decoded, with the reason added to `faults`."""
    try:
        with _opened_image(file) as image:
            if _is_animated(image):
                what = "an animated image is a video of its own and no frame of a directory"
                raise VideoError(f"{file}: {what}")
            return rgb_of(image)
    except _UnreadableImage as error:
        faults.append(str(error))
        return None


def _upright(image: PillowImage) -> PillowImage:
    """The image turned and mirrored as its EXIF says."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def rgb_of(image: PillowImage) -> np.ndarray:
    """(H, W, 3) uint8, upright; Pillow's conversion but for 16-bit pixels, which it would clip."""
    is_netpbm, image = image.format == "PPM", _upright(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and is_netpbm):
        # keep the high byte, as Pillow does for 16-bit colours
        grey = np.asarray(image) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        rule = "pixels must be of 8 or 16 bits"
        raise ValueError(f"{rule}, got Pillow's mode {image.mode}, which has no known range")
    return np.asarray(image.convert("RGB"))
