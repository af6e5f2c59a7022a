"""A large image as tiles, in VideoChat-Flash's way: the whole image, then its tiles row by row.

Each is encoded as an image of its own. The tokens of a row of tiles are interleaved as if those of
each tile were a square of pixels, as the models saw them, although merged tokens have no places.
"""

from __future__ import annotations

from math import isqrt

import torch
from einops import rearrange
from torch import Tensor

from timeviper_fast.errors import ArgumentError
from timeviper_fast.model.model import TimeViperNetwork
from timeviper_fast.video.preprocess import resize_bicubic, resize_normalize

__all__ = ["best_grid", "cut_tiles", "encode_tiles", "tile_order"]

_MOST = 6  # tiles per side, as in the released models' config.json


def best_grid(height: int, width: int, size: int, most: int = _MOST) -> tuple[int, int]:
    """(rows, columns) of tiles of `size` pixels that show most of an image, with the least waste.

    Args:
        height, width: of the image, in pixels.
        size: pixels per side of a tile.
        most: tiles per side at most.
    """

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        rows, columns = (side * size for side in grid)
        scale = min(columns / width, rows / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - rows * columns

    # of equal grids the one with fewer columns, as in upstream's list
    grids = [(rows, columns) for columns in range(1, most + 1) for rows in range(1, most + 1)]
    return max(grids, key=worth)


def cut_tiles(rgb: Tensor, size: int, rows: int, columns: int) -> Tensor:
    """The image stretched to one tile, then its tiles, stretched to the grid and cut row by row.

    Args:
        rgb: (height, width, 3) uint8.

    Returns:
        (1 + rows * columns, size, size, 3) uint8.
    """
    whole = resize_bicubic(rgb[None], size, size)
    grid = resize_bicubic(rgb[None], rows * size, columns * size)
    tiles = rearrange(grid, "1 c (y h) (x w) -> (y x) c h w", h=size, w=size)
    return torch.cat([whole, tiles]).permute(0, 2, 3, 1)


def tile_order(rows: int, columns: int, tokens: int) -> Tensor:
    """Which token stands where: ((1 + rows * columns) * tokens,) numbers, tile * tokens + token.

    Raises:
        ValueError: `tokens` per tile are no square number.
    """
    side = isqrt(tokens)
    if side**2 != tokens:
        raise ArgumentError("", "tokens of an image", "be a square number for tiles", tokens)
    numbers = torch.arange((1 + rows * columns) * tokens)
    tiles = rearrange(
        numbers[tokens:], "(ty tx y x) -> (ty y tx x)", ty=rows, tx=columns, y=side, x=side
    )
    return torch.cat([numbers[:tokens], tiles])


@torch.no_grad()
def encode_tiles(model: TimeViperNetwork, crops: Tensor, rows: int, columns: int) -> Tensor:
    """Visual tokens (1, n, d_model) of an image that `cut_tiles` cut."""
    vision = model.config.vision
    shape = (vision.image_size, vision.image_mean, vision.image_std, vision.resize)
    pixels = resize_normalize(crops.to(model.device), *shape).to(model.dtype)
    tokens = model.encode(pixels, images=True)
    order = tile_order(rows, columns, tokens.shape[1]).to(model.device)
    return tokens.flatten(0, 1)[order][None]
