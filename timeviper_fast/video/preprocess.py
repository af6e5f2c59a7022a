"""Frames to pixel values: bicubic resize, then normalisation.

`resize_bicubic` is bit for bit as Pillow's two passes, `resize_float` is one pass of torch in
float32, whose overshoot is kept: each model needs the one that it was trained with.

Pillow resizes 8-bit images in two passes, horizontal then vertical, with weights in 22-bit fixed
point, and rounds and clamps to 0..255 after each. One float pass differs by up to 21/255. Frames on
a CPU go to Pillow itself, where it is installed. Elsewhere each pass is a band of small float64
matrix products with the same integer weights. Their sums are exact, so every device gives the same
pixels, with Pillow or without.

The horizontal pass runs first, as in Pillow before 13 (except in 12.3, for strips over 100 times as
high as wide). Pillow 13 runs the vertical pass first if the height shrinks much more than the width
(its pull request 9549), mainly for portrait video. One call of its `resize` then gives other pixels
than this module, because its passes, each rounded and clamped, run in the other order. White noise
is the worst case (some pixels differ by about 20/255); landscape frames are equal. So this module
asks Pillow for one pass at a time. The strategy "pillow13" takes the order of Pillow 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper_fast.errors import ArgumentError

__all__ = ["resize_bicubic", "resize_float", "resize_normalize"]

_FIXED_POINT = 2.0**22
# Output pixels per matrix product. Wide blocks multiply more zeros, narrow ones cost more launches.
_BLOCK = 16


def resize_normalize(
    rgb: Tensor,
    size: int | tuple[int, int],
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    strategy: str = "naive",
) -> Tensor:
    """Resize frames to size x size and normalise them: (resize(rgb) / 255 - mean) / std.

    Args:
        rgb: (T, H, W, 3) uint8, any device.
        size: pixels per side of the result; its height and width with "float" and "float_aspect".
        mean, std: per channel, in units of 0..1; the defaults are SigLIP's.
        strategy: "naive" stretches to the square and ignores the aspect ratio (upstream's default);
            "crop" resizes the shorter side, then cuts the centre; "letterbox" pads to a square with
            mean * 255, then resizes; "pillow13" stretches with the passes in the order of
            Pillow 13; "float" stretches by `resize_float`; "float_aspect" does
            too, to a height and width that keep the aspect (`VisionConfig.frame_size`).

    Returns:
        (T, 3, height, width) float32 on the device of `rgb`.

    Raises:
        ValueError: an argument breaks its rule.
    """
    _expect_frames("resize_normalize", rgb)
    sides = size if isinstance(size, tuple) else (size, size)
    _expect_sizes("resize_normalize", "size", sides)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ArgumentError(
                "resize_normalize", name, "have one value per channel (3)", tuple(values)
            )
    if min(std) <= 0:
        raise ArgumentError("resize_normalize", "std", "be above 0", tuple(std))
    if strategy == "float_aspect" and not isinstance(size, tuple):
        rule = "be a height and a width that keep the frames' aspect for strategy='float_aspect'"
        raise ArgumentError("resize_normalize", "size", rule, size)
    if strategy in ("float", "float_aspect"):
        return _normalised(resize_float(rgb, *sides), mean, std)
    if sides[0] != sides[1]:
        raise ArgumentError("resize_normalize", "size", "be that of a square", size)
    size = sides[0]
    if strategy == "naive":
        pixels = resize_bicubic(rgb, size, size)
    elif strategy == "pillow13":
        height, width = rgb.shape[1:3]
        first = height > size and height - size > 2 * (width - size)
        pixels = resize_bicubic(rgb, size, size, vertical_first=first)
    elif strategy == "crop":
        pixels = _resize_then_crop(rgb, size)
    elif strategy == "letterbox":
        pixels = resize_bicubic(_pad_to_square(rgb, mean), size, size)
    else:
        rule = "be one of naive, crop, letterbox, pillow13, float, float_aspect"
        raise ArgumentError("resize_normalize", "strategy", rule, repr(strategy))
    return _normalised(pixels, mean, std)


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    shift, scale = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
        for values in (mean, std)
    )
    return (pixels.to(torch.float32) / 255 - shift) / scale


def resize_bicubic(rgb: Tensor, height: int, width: int, *, vertical_first: bool = False) -> Tensor:
    """Bicubic, antialiased resize, equal to Pillow resizing first the width, then the height.

    One call of Pillow 13's `resize` takes the height of portrait frames first, and differs there.

    Args:
        rgb: (T, H, W, 3) uint8, any device with float64.
        height, width: pixels of the result.
        vertical_first: resize the height, then the width.

    Returns:
        (T, 3, height, width) uint8, channels first.

    Raises:
        ValueError: an argument breaks its rule.
    """
    _expect_frames("resize_bicubic", rgb)
    _expect_sizes("resize_bicubic", "height and width", (height, width))
    if rgb.device.type == "cpu" and (image := _pillow()) is not None:
        return _resized_by_pillow(image, rgb, height, width, vertical_first)
    planes = rgb.permute(0, 3, 1, 2).contiguous()
    if vertical_first:
        columns = _resample_last(planes.transpose(2, 3), height)
        return _resample_last(columns.transpose(2, 3), width)
    planes = _resample_last(planes, width)
    return _resample_last(planes.transpose(2, 3), height).transpose(2, 3).contiguous()


def resize_float(rgb: Tensor, height: int, width: int) -> Tensor:
    """Bicubic, antialiased resize in float32, neither rounded nor clamped to 0..255.

    Args:
        rgb: (T, H, W, 3) uint8, any device.
        height, width: pixels of the result.

    Returns:
        (T, 3, height, width) float32, channels first; beside sharp edges some values lie below 0 or
        above 255.

    Raises:
        ValueError: an argument breaks its rule.
    """
    _expect_frames("resize_float", rgb)
    _expect_sizes("resize_float", "height and width", (height, width))
    pixels = torch.empty(len(rgb), 3, height, width, dtype=torch.float32, device=rgb.device)
    # one frame at a time: a decoded frame in float32 has 4 times the bytes
    for frame, out in zip(rgb, pixels):
        planes = frame.permute(2, 0, 1)[None].float()
        out.copy_(F.interpolate(planes, (height, width), mode="bicubic", antialias=True)[0])
    return pixels


def _pillow() -> ModuleType | None:
    """Pillow's module of images, if Pillow is installed."""
    return import_module("PIL.Image") if find_spec("PIL") else None


def _resized_by_pillow(
    image: ModuleType, rgb: Tensor, height: int, width: int, vertical_first: bool
) -> Tensor:
    """`resize_bicubic` with torch's number of threads: Pillow releases the interpreter lock."""
    pixels = np.empty((len(rgb), 3, height, width), np.uint8)

    def resize(frame: int) -> None:
        picture = image.fromarray(rgb[frame].contiguous().numpy())
        halfway = (picture.width, height) if vertical_first else (width, picture.height)
        for size in (halfway, (width, height)):
            picture = picture.resize(size, image.Resampling.BICUBIC)
        pixels[frame] = np.asarray(picture).transpose(2, 0, 1)

    threads = min(torch.get_num_threads(), len(rgb))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            # the results are None; listing them raises what a thread raised
            list(pool.map(resize, range(len(rgb))))
    else:
        for frame in range(len(rgb)):
            resize(frame)
    return torch.from_numpy(pixels)


def _resample_last(x: Tensor, size: int) -> Tensor:
    """One pass along the last dimension: uint8 (..., n) -> uint8 (..., size)."""
    if x.shape[-1] == size:
        return x
    blocks = []
    for start, weights in _bands(x.shape[-1], size):
        window = x[..., start : start + weights.shape[0]].to(torch.float64)
        fixed = window @ weights.to(x.device)
        blocks.append(((fixed + _FIXED_POINT / 2) / _FIXED_POINT).floor().clamp(0, 255).byte())
    return torch.cat(blocks, dim=-1)


@lru_cache(maxsize=32)
def _bands(n: int, size: int) -> list[tuple[int, Tensor]]:
    """Pillow's weights, cut into blocks of outputs: (first input, (inputs, outputs) weights).

    Output i is centred at c = (i + 0.5) * n / size and takes the inputs whose middle lies within
    2 * max(n / size, 1) of c; Keys' cubic with a = -0.5, stretched by that factor, gives the
    weights, which are divided by their sum and rounded to 22-bit fixed point, half away from 0.
    """
    scale = n / size
    stretch = max(scale, 1.0)
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    first = (centres - 2 * stretch + 0.5).long().clamp(min=0)
    after = (centres + 2 * stretch + 0.5).long().clamp(max=n)
    bands = []
    for outputs in torch.arange(size).split(_BLOCK):
        start = int(first[outputs[0]])
        inputs = torch.arange(start, int(after[outputs[-1]]))[:, None]
        reached = (inputs >= first[outputs]) & (inputs < after[outputs])
        distance = (inputs - centres[outputs] + 0.5) * (1 / stretch)
        weights = torch.where(reached, _cubic(distance.abs()), 0.0)
        fixed = weights / weights.sum(0) * _FIXED_POINT
        bands.append((start, torch.trunc(fixed + 0.5 * fixed.sign())))
    return bands


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, at distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _resize_then_crop(rgb: Tensor, size: int) -> Tensor:
    height, width = rgb.shape[1:3]
    shorter = min(height, width)
    # as torchvision: truncate the longer side, round the crop's corner half to even
    new_height, new_width = (int(size * side / shorter) for side in (height, width))
    pixels = resize_bicubic(rgb, new_height, new_width)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return pixels[:, :, top : top + size, left : left + size]


def _pad_to_square(rgb: Tensor, mean: Sequence[float]) -> Tensor:
    """Centre every frame in a square of the colour mean * 255 (truncated)."""
    frames, height, width, _ = rgb.shape
    side = max(height, width)
    colour = torch.tensor([int(255 * m) for m in mean], dtype=torch.uint8, device=rgb.device)
    square = colour.expand(frames, side, side, 3).contiguous()
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = rgb
    return square


def _expect_frames(op: str, rgb: Tensor) -> None:
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or 0 in rgb.shape[1:]:
        raise ArgumentError(op, "rgb", "be (frames, height, width, 3)", f"shape {tuple(rgb.shape)}")
    if rgb.dtype != torch.uint8:
        raise ArgumentError(op, "rgb", "be of dtype uint8", str(rgb.dtype).removeprefix("torch."))


def _expect_sizes(op: str, argument: str, sizes: Sequence[int]) -> None:
    if min(sizes) < 1:
        raise ArgumentError(op, argument, "be at least 1 pixel", ", ".join(map(str, sizes)))
