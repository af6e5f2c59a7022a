"""Which backend runs an op: the tensor's device decides, or `use_backend(...)` forces it.

Nothing here asks whether an import failed. A CUDA tensor whose op has no Triton kernel, or no
Triton, raises `BackendUnavailable` with the remedy; no call becomes slow in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
    "decode_step",
    "rmsnorm",
    "tome",
    "attention_topk",
    "compact",
    "gated_cross_attention",
    "relu2",
)

# which rooms a public op runs through; the ones without compute indices, in plain PyTorch anywhere
OPS: dict[str, tuple[str, ...]] = {
    "mamba_chunk_scan_combined": ("ssd",),
    "mamba_split_conv1d_scan_combined": ("causal_conv1d", "ssd", "rmsnorm"),
    "causal_conv1d_fn": ("causal_conv1d",),
    "causal_conv1d_update": ("causal_conv1d",),
    "causal_conv1d_varlen_states": ("causal_conv1d",),
    "selective_state_update": ("selective_state_update",),
    "mamba2_decode_step": ("decode_step",),
    "rms_norm": ("rmsnorm",),
    "rmsnorm_fn": ("rmsnorm",),
    "layernorm_fn": ("rmsnorm",),
    "tome_merge": ("tome",),
    "attention_topk": ("attention_topk",),
    "attention_topk_hidden": ("attention_topk",),
    "uniform_topk": (),
    "dropped_indices": (),
    "compact": ("compact",),
    "gated_cross_attention": ("gated_cross_attention",),
    "relu2": ("relu2",),
}

_REMEDY = (
    'run it inside tvkernels.use_backend("reference"), or move its tensors to the CPU '
    '(device="cpu")'
)

# looked up once, because torch.compile cannot trace a look at the disk
_ENGINES = frozenset(
    room for room in ROOMS if (Path(__file__).parents[1] / room / "kernel.py").exists()
)
_HAS_TRITON = util.find_spec("triton") is not None

# by room; a plain global, because torch.compile can guard on one and cannot trace a ContextVar
_forced: dict[str, Backend] = {}


class BackendUnavailable(RuntimeError):
    """The backend that an op would run on is not there; the message ends with the remedy."""


@dataclass(frozen=True)
class OpBackend:
    """One row of `explain()`: what runs the public op `op` on `device`, and why.

    Attributes:
        op: its public name.
        room: the folder of tvkernels that holds its engine; several for a composed op, none for
            one that only computes indices.
        device: of the tensors it is called with: cpu or cuda.
        backend: reference, triton or unavailable.
        reason: why, and the engine.
    """

    op: str
    room: str
    device: str
    backend: str
    reason: str


@contextmanager
def use_backend(name: Backend, *rooms: str) -> Iterator[None]:
    """Force ops called inside the block onto one backend, in the whole process.

    Blocks nest; the innermost that names an op's room decides.

    Args:
        name: "reference" (plain PyTorch, any device) or "triton".
        rooms: only the ops of these rooms, as `explain()` names them; none named: every op.

    Raises:
        ValueError: `name` is not a backend, or one of `rooms` no room.
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend: name must be one of {', '.join(BACKENDS)}, got {name!r}")
    for room in rooms:
        if room not in ROOMS:
            raise ValueError(f"use_backend: rooms must be among {', '.join(ROOMS)}, got {room!r}")
    global _forced
    before, _forced = _forced, {**_forced, **dict.fromkeys(rooms or ROOMS, name)}
    try:
        yield
    finally:
        _forced = before


def backend_for(x: torch.Tensor, room: str) -> Backend:
    """The backend that runs the op in `room` on `x`: forced, else Triton on CUDA, else reference.

    Raises:
        BackendUnavailable: Triton is due and cannot run.
    """
    backend = _forced.get(room) or ("triton" if x.is_cuda else "reference")
    if backend == "triton":
        obstacle = _obstacle(room, x.device.type)
        if obstacle:
            raise BackendUnavailable(f"{room}: {obstacle}; {_REMEDY}")
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
    rooms = OPS[op]
    row = partial(OpBackend, op, ", ".join(rooms), device)
    if not rooms:
        return row("reference", "index arithmetic: plain PyTorch")
    default = "triton" if device == "cuda" else "reference"
    backends = {room: _forced.get(room, default) for room in rooms}
    for room in [room for room in rooms if backends[room] == "triton"]:
        obstacle = _obstacle(room, device)
        if obstacle:
            return row("unavailable", obstacle if len(rooms) == 1 else f"{room}: {obstacle}")
    names = sorted({*backends.values()})
    engines = {"reference": "plain PyTorch", "triton": f"Triton {triton_version()}"}
    forced = any(room in _forced for room in rooms)
    why = "forced by use_backend" if forced else f"a {device.upper()} tensor"
    return row(" and ".join(names), f"{why}: {' and '.join(engines[name] for name in names)}")


def _obstacle(room: str, device: str) -> str | None:
    """Why Triton cannot run the op in `room` on `device`; None when it can."""
    if room not in _ENGINES:
        return "it has no Triton kernel in this version"
    if not _HAS_TRITON:
        return "Triton is not installed (pip install triton)"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton cannot run on a {device} tensor without TRITON_INTERPRET=1"
    return None
