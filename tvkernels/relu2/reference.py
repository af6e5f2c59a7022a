"""Plain PyTorch truth of relu(x)^2, also what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["relu2_ref"]


def relu2_ref(x: Tensor) -> Tensor:
    """max(x, 0)^2: see `relu2`.

    In the dtype of x, yet rounded once: relu is exact, and PyTorch multiplies 16 bit numbers as
    float32. A product and not a square, because autocast widens the power that a square is.
    """
    positive = torch.relu(x)
    return positive * positive
