"""Which backend runs an op: the tensor's device decides, or `use_backend(...)` forces it.

Nothing here asks whether an import failed. A CUDA tensor whose op has no Triton kernel, or no
Triton, raises `BackendUnavailable` with the remedy; no call becomes slow in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

import torch

__all__ = ["BackendUnavailable", "OpBackend", "backend_for", "explain", "use_backend"]

Backend = Literal["reference", "triton"]
BACKENDS: tuple[Backend, ...] = ("reference", "triton")

# One room (op folder) may hold several public functions; the room is what has, or lacks, a kernel:
# kernel.py arrives when it serves every function of its room.
ROOMS = (
    "ssd",
    "causal_conv1d",
    "selective_state_update",
    "rmsnorm",
    "tome",
    "attention_topk",
    "gated_cross_attention",
    "relu2",
)

_REMEDY = "run it inside tvkernels.use_backend('reference'), or move its tensors to the CPU"

# looked up once, because torch.compile cannot trace a look at the disk
_ENGINES = frozenset(
    room for room in ROOMS if (Path(__file__).parents[1] / room / "kernel.py").exists()
)
_HAS_TRITON = util.find_spec("triton") is not None

# a plain global, because torch.compile can guard on one and cannot trace a ContextVar
_forced: Backend | None = None


class BackendUnavailable(RuntimeError):
    """The backend that an op would run on is not there; the message ends with the remedy."""


@dataclass(frozen=True)
class OpBackend:
    """One row of `explain()`: who runs the op in `room` on `device`, and why."""

    room: str
    device: str
    backend: str
    reason: str


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Force every op called inside the block onto one backend, in the whole process.

    Args:
        name: "reference" (plain PyTorch, any device) or "triton".

    Raises:
        ValueError: `name` is not a backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend: name must be one of {', '.join(BACKENDS)}, got {name!r}")
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def backend_for(x: torch.Tensor, room: str) -> Backend:
    """The backend that runs the op in `room` on `x`: forced, else Triton on CUDA, else reference.

    Raises:
        BackendUnavailable: Triton is due and cannot run.
    """
    backend = _forced or ("triton" if x.is_cuda else "reference")
    if backend == "triton":
        obstacle = _obstacle(room, x.device.type)
        if obstacle:
            raise BackendUnavailable(f"{room}: {obstacle}; {_REMEDY}")
    return backend


def explain() -> list[OpBackend]:
    """Which backend runs each op here, by device, and why: one row per room and device."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [_explain_one(room, device) for room in ROOMS for device in devices]


def triton_version() -> str | None:
    """Version of the installed Triton, None where there is none. Imports nothing."""
    if not _HAS_TRITON:
        return None
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "unknown version"


def _explain_one(room: str, device: str) -> OpBackend:
    backend = _forced or ("triton" if device == "cuda" else "reference")
    obstacle = _obstacle(room, device) if backend == "triton" else None
    if obstacle:
        return OpBackend(room, device, "unavailable", obstacle)
    engine = f"Triton {triton_version()}" if backend == "triton" else "plain PyTorch"
    if _forced:
        return OpBackend(room, device, backend, f"forced by use_backend: {engine}")
    return OpBackend(room, device, backend, f"a {device.upper()} tensor: {engine}")


def _obstacle(room: str, device: str) -> str | None:
    """Why Triton cannot run the op in `room` on `device`; None when it can."""
    if room not in _ENGINES:
        return "it has no Triton kernel in this version"
    if not _HAS_TRITON:
        return "Triton is not installed (pip install triton)"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton cannot run on a {device} tensor without TRITON_INTERPRET=1"
    return None
