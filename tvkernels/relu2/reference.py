"""Reference of relu(x)^2 in plain PyTorch; it is what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["relu2_ref"]


def relu2_ref(x: Tensor) -> Tensor:
    """max(x, 0)^2: see `relu2`.

    Computed in the dtype of x and yet rounded once: relu is exact, and PyTorch multiplies 16 bit
    numbers in float32. It is a product, not a square, because autocast casts powers to float32.
    """
    positive = torch.relu(x)
    return positive * positive
