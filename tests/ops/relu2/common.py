"""Inputs of relu2 and a float64 form to compare with."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.ops.common import randn


def naive(x: torch.Tensor) -> torch.Tensor:
    """By a mask, in one wide dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * wide * (wide > 0)).to(x.dtype)


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "vector": lambda: randn(37),
    "no dimension": lambda: randn(1)[0],
    "several programs": lambda: randn(3, 7, 1000),
    "slice": lambda: randn(5, 7, 40)[..., 3:30],
    "wide slice": lambda: randn(3, 9001)[:, 1:8999],
    "transposed": lambda: randn(4, 6, 5).mT,
    "batch last": lambda: randn(6, 5, 4).permute(2, 0, 1),
    "every other": lambda: randn(4, 30)[:, ::2],
    "many short rows": lambda: randn(700, 4)[:, :3],
    "no two strides": lambda: randn(4, 6, 10)[::2, ::2, :7],
    "expanded": lambda: randn(1, 7).expand(5, 7),
    "a scalar expanded": lambda: randn(1)[0].expand(3, 4),
    "sizes of one": lambda: randn(3, 1, 8)[:, :, 2:7].unsqueeze(0),
    "a size of one, its stride far": lambda: randn(30).as_strided((5, 1, 6), (6, 1000, 1)),
}
