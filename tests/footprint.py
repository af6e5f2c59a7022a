"""What a call allocates: the largest tensor any of its operations returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Inside the block, `numel` is the largest number of elements of a tensor that owns memory."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.numel = max([self.numel, *(t.numel() for t in tensors)])
        return result


def largest_tensor(fn: Callable[[], Any]) -> int:
    """Elements of the largest tensor that `fn()` allocates, with its backward if it runs one."""
    with LargestTensor() as mode:
        fn()
    return mode.numel
