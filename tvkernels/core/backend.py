"""Which backend runs an op: the tensor's device decides, or `use_backend(...)` forces it.

Nothing here asks whether an import failed. A CUDA tensor raises `BackendUnavailable` with the
remedy where Triton is missing; no call silently falls back to the slow reference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from typing import Literal

import torch

from tvkernels.core.checks import fail
from tvkernels.core.table import KERNELS, OPS

__all__ = [
    "BackendUnavailable",
    "OpBackend",
    "backend_for",
    "explain",
    "forced_backend",
    "use_backend",
]

Backend = Literal["reference", "triton"]
BACKENDS: tuple[Backend, ...] = ("reference", "triton")

_REMEDY = (
    'run it inside tvkernels.use_backend("reference"), or move its tensors to the CPU '
    '(device="cpu")'
)

# looked up at import: torch.compile cannot trace a search for a module
_HAS_TRITON = util.find_spec("triton") is not None

# by kernel; a plain global, because torch.compile can guard on one and cannot trace a ContextVar
_forced: dict[str, Backend] = {}


class BackendUnavailable(RuntimeError):
    """The backend that an op would run on is not there; the message ends with the remedy."""


@dataclass(frozen=True)
class OpBackend:
    """One row of `explain()`: what runs the public op `op` on `device`, and why.

    Attributes:
        op: its public name.
        kernel: name of the kernel that it launches; several for a composed op, empty for one that
            only computes indices.
        device: of the tensors it is called with: cpu or cuda.
        backend: reference, triton or unavailable.
        reason: why, and the library that runs it.
    """

    op: str
    kernel: str
    device: str
    backend: str
    reason: str


@contextmanager
def use_backend(name: Backend, *kernels: str) -> Iterator[None]:
    """Force ops called inside the block onto one backend, in the whole process.

    Blocks nest; the innermost that names an op's kernel decides.

    Args:
        name: "reference" (plain PyTorch, any device) or "triton".
        kernels: force only the ops of these kernels, named as in `explain()`; without names, force
            every op.

    Raises:
        ValueError: `name` is not a backend, or one of `kernels` is not a kernel.
    """
    if name not in BACKENDS:
        fail("use_backend", "name", f"be one of {', '.join(BACKENDS)}", repr(name))
    for kernel in kernels:
        if kernel not in KERNELS:
            fail("use_backend", "kernels", f"be among {', '.join(KERNELS)}", repr(kernel))
    global _forced
    before, _forced = _forced, {**_forced, **dict.fromkeys(kernels or KERNELS, name)}
    try:
        yield
    finally:
        _forced = before


def forced_backend(kernel: str) -> Backend | None:
    """The backend that `use_backend` forces on the ops of `kernel` here; None where it does not."""
    return _forced.get(kernel)


def backend_for(x: torch.Tensor, kernel: str) -> Backend:
    """The backend that runs the ops of `kernel` on `x`: the forced one, else Triton on CUDA, else
    the reference.

    Raises:
        BackendUnavailable: Triton is due and cannot run.
    """
    backend = forced_backend(kernel) or ("triton" if x.is_cuda else "reference")
    if backend == "triton":
        obstacle = _obstacle(x.device.type)
        if obstacle:
            raise BackendUnavailable(f"{kernel}: {obstacle}; {_REMEDY}")
    return backend


def explain() -> list[OpBackend]:
    """Which backend runs each public op here, and why: one row per op and device."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [_explain_one(op, device) for op in OPS for device in devices]


def triton_version() -> str | None:
    """Version of the installed Triton, None where there is none. Imports nothing."""
    if not _HAS_TRITON:
        return None
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "unknown version"


def _explain_one(op: str, device: str) -> OpBackend:
    kernels = OPS[op]
    row = partial(OpBackend, op, ", ".join(kernels), device)
    if not kernels:
        return row("reference", "index arithmetic: plain PyTorch")
    default = "triton" if device == "cuda" else "reference"
    backends = sorted({forced_backend(kernel) or default for kernel in kernels})
    obstacle = _obstacle(device) if "triton" in backends else None
    if obstacle:
        return row("unavailable", obstacle)
    libraries = {"reference": "plain PyTorch", "triton": f"Triton {triton_version()}"}
    forced = any(forced_backend(kernel) for kernel in kernels)
    why = "forced by use_backend" if forced else f"a {device.upper()} tensor"
    runs = " and ".join(libraries[backend] for backend in backends)
    return row(" and ".join(backends), f"{why}: {runs}")


def _obstacle(device: str) -> str | None:
    """Why Triton cannot run on tensors of `device`; None when it can."""
    if not _HAS_TRITON:
        return "Triton is not installed (pip install triton)"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton cannot run on a {device} tensor without TRITON_INTERPRET=1"
    return None
