"""What weights are, as one short text: equal for equal weights on every device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256

import torch
from torch import Tensor, nn

from timeviper_fast.model.model import TimeViperNetwork

__all__ = [
    "fingerprint",
    "numbers_of",
    "state_of_weights",
    "tensor_digests",
    "vision_fingerprint",
]

# numbers that are summed at a time: their 64-bit copies stay in a CPU's cache, and small on a GPU
_PIECES = {"cpu": 1 << 16, "cuda": 1 << 24}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def numbers_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name; tied ones under each of their names."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    return tensors | dict(module.named_buffers(remove_duplicate=False))


def fingerprint(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """SHA-256 over the names, dtypes, shapes and bits of tensors, and the `repr` of further facts.

    It is computed anew at each call, because weights may have been trained on since. The tensors
    are read once, on their device.
    """
    digests = tensor_digests(tensors)
    total = sha256(repr(facts).encode())
    for name, x in sorted(tensors.items()):
        total.update(repr((name, str(x.dtype), tuple(x.shape), digests[name])).encode())
    return total.hexdigest()


def vision_fingerprint(model: TimeViperNetwork) -> str:
    """That of all that a model's merged features depend on: the vision encoder, and how its patches
    are merged. Projector and LLM are not part of it."""
    vision, projector = model.config.vision, model.config.projector
    merging: object = replace(projector, kind="tome_mlp") if projector.merges else None
    if projector.shuffles:
        merging = projector.kind
    return fingerprint(numbers_of(model.vision), vision, merging)


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """For each tensor, the sum of its bits as integers times (2 i + 1), modulo 2^64.

    A sum of integers has no order, so every device gives the same. A tensor that has several names
    is read once.
    """
    sums: dict[int, Tensor] = {}
    for x in tensors.values():
        if id(x) not in sums:
            sums[id(x)] = _digest(x)
    # one transfer per device: each would be a host sync
    values: dict[int, int] = {}
    for device in {total.device for total in sums.values()}:
        of_device = {key: total for key, total in sums.items() if total.device == device}
        values.update(zip(of_device, torch.stack([*of_device.values()]).tolist()))
    return {name: values[id(x)] % 2**64 for name, x in tensors.items()}


@torch.no_grad()
def _digest(x: Tensor) -> Tensor:
    """The sum of `tensor_digests`, int64 on the tensor's device: it wraps around modulo 2^64."""
    flat = x.detach().reshape(-1).view(_INTEGERS[x.element_size()])
    piece = _PIECES[x.device.type]
    odd = torch.arange(1, 2 * min(piece, len(flat)) + 1, 2, device=x.device)
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for start in range(0, len(flat), piece):
        bits = flat[start : start + piece].to(torch.int64)
        total += (bits * odd[: len(bits)]).sum() + 2 * start * bits.sum()
    return total


def state_of_weights(model: TimeViperNetwork) -> str:
    """Where and what a model's weights are, and how often torch has seen them written in place."""
    tensors = numbers_of(model).values()
    writes = sum(weight._version for weight in tensors if not weight.is_inference())
    return f"{model.dtype} on {model.device}, written {writes} times"
