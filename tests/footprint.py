"""What a call allocates: its largest tensor, and the most that it holds at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
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


class Footprint(TorchDispatchMode):
    """Inside the block, every tensor that comes into being is counted as long as it is held.

    On meta tensors too, which have sizes and no memory: how an hour of video is measured.
    """

    def __init__(self) -> None:
        super().__init__()
        self.born = 0
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.sizes: dict[int, int] = {}
        self.history: list[set[int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {key for key, _ in map(_storage, _tensors((args, kwargs)))}
        result = func(*args, **(kwargs or {}))
        self.held = {key: entry for key, entry in self.held.items() if not entry[0].expired()}
        for key, storage in map(_storage, _tensors(result)):
            if key not in given and key not in self.held:
                self.held[key] = (StorageWeakRef(storage), self.born)
                self.sizes[self.born] = storage.nbytes()
                self.born += 1
        self.history.append({birth for _, birth in self.held.values()})
        return result

    def peak(self, besides: Any = ()) -> int:
        """The most bytes held at a time, without those of the tensors `besides`."""
        keys = {key for key, _ in map(_storage, _tensors(besides))}
        out = {birth for key, (_, birth) in self.held.items() if key in keys}
        return max(sum(self.sizes[i] for i in held - out) for held in self.history)


def _tensors(x: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)]


def _storage(x: torch.Tensor) -> tuple[int, torch.UntypedStorage]:
    storage = x.untyped_storage()
    return storage._cdata, storage
