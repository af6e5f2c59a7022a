"""Which backend runs an op: the tensor's device decides, or `use_backend(...)` forces it.

Nothing here asks whether an import failed. A CUDA tensor raises `BackendUnavailable` with the
remedy where Triton is missing; no call silently falls back to the slow reference.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata, util
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch

from tvkernels.core.checks import fail
from tvkernels.core.holds import Holds, called, entered, left
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

_Function = TypeVar("_Function", bound=Callable[..., Any])


_forced: ContextVar[_Forced] = ContextVar("tvkernels_forced")


@dataclass(frozen=True, eq=False)
class _Forced:
    """What the uses of `use_backend` that are in force in one context amount to."""

    holds: Holds
    by_kernel: Mapping[str, Backend]

    # The value of the context; the instance itself where it has none. torch.compile cannot trace
    # ContextVar.get, but it reads a property whose getter is a builtin, and guards on what it read:
    # each later call is compared with the context that it runs in.
    here = property(_forced.get)


_NOTHING = _Forced((), {})

# use_backend inside a compiled function: true only while torch.compile traces, empty otherwise
_traced: dict[str, Backend] = {}


class BackendUnavailable(RuntimeError):
    """The backend that an op would run on is not there: (kernel, obstacle, remedy)."""

    def __str__(self) -> str:
        kernel, obstacle, remedy = self.args
        return f"{kernel}: {obstacle}; {remedy}"


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


class use_backend:  # noqa: N801
    """Force ops onto one backend from this call on, in the context of the caller only.

    As a statement it stays in force until `undo()` is called or the context ends. `with` undoes it
    at the end of the block, and a function decorated with it is forced while it runs:

        with use_backend("reference"): ...

    Where several are in force, the newest that names an op's kernel decides; they may end in any
    order. A context is that of `contextvars`: an asyncio task and `asyncio.to_thread` start with a
    copy of their parent's, a forked process with its parent's. A new thread (also of a pool or of
    DataParallel) and a spawned process start with nothing forced. The backward pass of a Triton
    kernel is Triton, whatever is in force then. torch.utils.checkpoint calls the ops again in
    the backward pass, so call `backward` in the same block; the threads of autograd see it.

    torch.compile follows it, and compiles once more where it changes. Inside a compiled function
    only a `with` block or a decorated function is followed.

    Args:
        name: "reference" (plain PyTorch, any device) or "triton".
        kernels: force only the ops of these kernels, named as in `explain()`; without names, force
            every op.

    Raises:
        ValueError: `name` is not a backend, or one of `kernels` is not a kernel.
    """

    def __init__(self, name: Backend, *kernels: str) -> None:
        if name not in BACKENDS:
            fail("use_backend", "name", f"be one of {', '.join(BACKENDS)}", repr(name))
        for kernel in kernels:
            if kernel not in KERNELS:
                fail("use_backend", "kernels", f"be among {', '.join(KERNELS)}", repr(kernel))
        self.name, self.kernels = name, kernels
        if not torch.compiler.is_compiling():
            _force(called, self)

    def undo(self) -> None:
        """End this use here, if it is in force in this context; later calls change nothing."""
        _force(left, self)

    def __enter__(self) -> use_backend:
        if torch.compiler.is_compiling():
            global _traced
            self._before, _traced = _traced, {**_traced, **self._choice()}
        else:
            _force(entered, self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if torch.compiler.is_compiling():
            global _traced
            _traced = self._before
        else:
            self.undo()

    def __call__(self, function: _Function) -> _Function:
        """Decorate `function`: it runs forced, in each context that calls it.

        Raises:
            ValueError: a class, or a generator function. A generator runs in the context of the
                code that takes its values, so that code would be forced between two values. Inside
                one, use `with` blocks that hold no yield: a block around a yield forces that code.
        """
        # the call of use_backend took effect; a decorator acts only while its function runs
        self.undo()
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            rule = "not be a generator function, which would force its caller between two values"
            remedy = "use `with` blocks inside it that hold no yield"
            fail("use_backend", "function", rule, function.__qualname__, remedy)
        if inspect.isclass(function) or not callable(function):
            fail("use_backend", "function", "be a function", repr(function))

        @functools.wraps(function)
        def forced(*args: Any, **kwargs: Any) -> Any:
            with use_backend(self.name, *self.kernels):
                return function(*args, **kwargs)

        @functools.wraps(function)
        async def forced_coroutine(*args: Any, **kwargs: Any) -> Any:
            with use_backend(self.name, *self.kernels):
                return await function(*args, **kwargs)

        chosen: Any = forced_coroutine if inspect.iscoroutinefunction(function) else forced
        return chosen

    def _choice(self) -> dict[str, Backend]:
        return dict.fromkeys(self.kernels or KERNELS, self.name)


def _force(change: Callable[[Holds, Any], Holds], owner: use_backend) -> None:
    holds = change(_forced.get(_NOTHING).holds, owner)
    by_kernel: dict[str, Backend] = {}
    for hold in holds:
        by_kernel |= hold.owner._choice()
    _forced.set(_Forced(holds, by_kernel) if holds else _NOTHING)


def forced_backend(kernel: str) -> Backend | None:
    """The backend that `use_backend` forces on the ops of `kernel` here; None where it does not."""
    if kernel in _traced:
        return _traced[kernel]
    forced = _NOTHING.here
    if forced is _NOTHING:
        # a thread of autograd's has no context; PyTorch hands it that of the backward's caller
        if torch.compiler.is_compiling() or not torch._C._is_key_in_tls("context"):
            return None
        forced = torch._C._get_obj_in_tls("context").get(_forced, _NOTHING)
    chosen: Backend | None = forced.by_kernel.get(kernel)
    return chosen


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
            raise BackendUnavailable(kernel, obstacle, _REMEDY)
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
    row = functools.partial(OpBackend, op, ", ".join(kernels), device)
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
