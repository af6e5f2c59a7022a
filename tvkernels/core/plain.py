"""What references share. PyTorch alone, as they are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["no_autocast"]


def no_autocast(x: Tensor) -> torch.autocast:
    """A region in which autocast does not lower products of tensors on the device of `x`."""
    # autocast does not know the meta device, on which nothing is computed
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
