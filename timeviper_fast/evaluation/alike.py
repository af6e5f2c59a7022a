"""Whether the frames of a haystack differ, as the model sees them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

__all__ = ["Alike", "find_alike", "thumbnails"]

_SIDE = 6
_NEAR = 20  # a near neighbour is closer than this part of the median distance
_MEDIAN_OVER = 256  # frames whose distances to all others give the median


@dataclass(frozen=True)
class Alike:
    """How many frames have a neighbour that is like them.

    Attributes:
        frames: how many were compared, each with all others.
        identical: frames with a neighbour at distance 0.
        near: frames with a neighbour closer than 1/20 of the median distance, or identical.
        nearest: the smallest Euclidean distance between two thumbnails (108 values of 0 to 255).
        median: the median distance between the first 256 frames and all others.
    """

    frames: int
    identical: int
    near: int
    nearest: float
    median: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.frames:,} frames by 6x6 thumbnails: {self.identical / self.frames:.1%} have an "
            f"identical and {self.near / self.frames:.1%} a near neighbour (< 1/20 of the median)"
        )


def thumbnails(rgb: Tensor) -> Tensor:
    """(n, 3, height, width) in 0..255 -> (n, 108) float32: the means of 6 x 6 areas, rounded."""
    return adaptive_avg_pool2d(rgb.float(), _SIDE).round().flatten(1).cpu()


def find_alike(thumbs: Tensor, block: int = 1024) -> Alike:
    """Compare each frame with all others; exact, because float32 holds these whole numbers.

    Args:
        thumbs: (n, 108) from `thumbnails`, for two frames or more.
        block: frames compared with all others at a time; it bounds the memory.
    """
    # sums of 108 squares of 0..255, and twice such a sum, stay below 2^24
    squares = thumbs.square().sum(1)
    nearest, first = [], torch.empty(0)
    for start in range(0, len(thumbs), block):
        part = thumbs[start : start + block]
        squared = squares[start : start + block, None] + squares - 2 * (part @ thumbs.T)
        rows = torch.arange(len(part))
        # exclude each frame's distance to itself
        squared[rows, start + rows] = torch.inf
        nearest.append(squared.amin(1))
        if start == 0:
            first = squared[:_MEDIAN_OVER]
    closest = torch.cat(nearest).sqrt()
    median = float(first[first.isfinite()].median().sqrt())
    return Alike(
        frames=len(thumbs),
        identical=int((closest == 0).sum()),
        near=int((closest < median / _NEAR).sum()),
        nearest=float(closest.min()),
        median=median,
    )
