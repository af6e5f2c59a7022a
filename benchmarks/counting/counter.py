"""Count what Triton launches, and PyTorch operations around them, move and compute: no GPU needed.

    with counting() as record:
        fn()
    record.totals()["cold_read"]

The kernels run in Triton's interpreter, so TRITON_INTERPRET=1 must be set before Triton is
imported. Each launch leaves a log of its memory accesses in sectors of 32 bytes, the least that
moves between a GPU and its memory; `cache_model.py` replays that log through a cache.
An autotuned kernel runs its first configuration. Values play no part, but bfloat16 is slow and
wrong in the interpreter: count with float16, which is as wide.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.runtime.interpreter as interpreter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.autotuner import Autotuner

SECTOR = 32
BUILDER = interpreter.InterpreterBuilder
SPECIAL = ("cos", "erf", "exp", "exp2", "log", "log2", "rsqrt", "sin", "sqrt", "precise_sqrt")
DIVISIONS = ("fdiv", "precise_divf", "approx_divf")


class Access(NamedTuple):
    """One tile read or written by one program; sector numbers are sorted and distinct."""

    program: int
    writes: bool
    sectors: np.ndarray


@dataclass
class Launch:
    """One kernel launch, or one PyTorch operation (named "torch.<operation>").

    counts: requested_read and requested_write (bytes without masked lanes), programs,
    dot.<dtype> (2*M*N*K as written, padding included), special.<function> (elements, padding
    included; div is division of floats).
    """

    kernel: str
    grid: tuple[int, int, int] = (1, 1, 1)
    program: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    accesses: list[Access] = field(default_factory=list)

    def access(self, writes: bool, addresses: np.ndarray, width: int) -> None:
        direction = "write" if writes else "read"
        self.counts[f"requested_{direction}"] += addresses.size * width
        if addresses.size:
            sectors = np.unique(addresses.ravel().astype(np.int64) // SECTOR)
            self.accesses.append(Access(self.program, writes, sectors))

    def distinct(self, writes: bool) -> int:
        """Bytes that this launch moves if every byte moves once."""
        parts = [access.sectors for access in self.accesses if access.writes == writes]
        return SECTOR * np.unique(np.concatenate(parts)).size if parts else 0


@dataclass
class Record:
    launches: list[Launch] = field(default_factory=list)

    def totals(self) -> Counter[str]:
        """All counts added up, with launches, cold_read and cold_write.

        cold: distinct bytes of each launch, as if no launch found anything in the cache.
        """
        total: Counter[str] = Counter()
        for launch in self.launches:
            total.update(launch.counts)
            total.update(launches=1, cold_read=launch.distinct(False))
            total.update(cold_write=launch.distinct(True))
        return total


@contextlib.contextmanager
def counting(kernels: Collection[str] | None = None) -> Iterator[Record]:
    """Count every Triton launch and PyTorch operation inside the block, backward passes included.

    Args:
        kernels: names of the only kernels that run and count; the others' results are missing.

    Raises:
        RuntimeError: another counting is in progress.
    """
    if BUILDER.create_dot.__module__ == __name__:
        raise RuntimeError("counting: blocks cannot be nested")
    record = Record()
    replacements = _replacements(_Hooks(record, kernels))
    with interpretable(), _replaced(replacements), _TorchOperations(record):
        yield record


@contextlib.contextmanager
def interpretable() -> Iterator[None]:
    """Let any kernel run in the interpreter: autotuned ones, and loops to a loaded bound."""
    first = (Autotuner, "run", _first_configuration(Autotuner.run))
    with _replaced([first, _loop_bounds()]), np.errstate(all="ignore"):
        yield


@contextlib.contextmanager
def _replaced(replacements: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, name, method in replacements:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, method)
        yield


class _Hooks:
    """Counts the calls of the interpreter's methods, for the launch in progress."""

    def __init__(self, record: Record, kernels: Collection[str] | None) -> None:
        self.record = record
        self.kernels = kernels
        self.now = Launch("none")
        # keep every tensor alive: another one could get a freed address
        self.alive: list[Any] = []

    def launch(self, executor: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.kernels is not None and executor.fn.__name__ not in self.kernels:
            return None
        self.alive += [a for a in [*args, *kwargs.values()] if isinstance(a, torch.Tensor)]
        self.now = Launch(executor.fn.__name__)
        self.record.launches.append(self.now)
        with torch.utils._python_dispatch._disable_current_modes():
            return original(executor, *args, **kwargs)

    def program(self, builder: Any, original: Callable[..., Any], x: int, y: int, z: int) -> None:
        """Programs are numbered as the hardware starts them: axis 0 fastest."""
        nx, ny, _ = self.now.grid = builder.grid_dim
        self.now.program = x + nx * (y + ny * z)
        self.now.counts["programs"] += 1
        original(builder, x, y, z)

    def load(self, _: Any, ptrs: Any, mask: Any, *rest: Any) -> None:
        self.memory(False, ptrs, mask)

    def store(self, _: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> None:
        self.memory(True, ptrs, mask)

    def atomic(self, _: Any, op: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> None:
        self.memory(False, ptrs, mask)
        self.memory(True, ptrs, mask)

    def memory(self, writes: bool, ptrs: Any, mask: Any) -> None:
        lanes = np.broadcast_to(np.asarray(mask.data, dtype=bool), ptrs.data.shape)
        width = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        self.now.access(writes, ptrs.data[lanes], width)

    def dot(self, _: Any, a: Any, b: Any, *rest: Any) -> None:
        rows = a.data.size // a.data.shape[-1]
        flops = 2 * rows * a.data.shape[-1] * b.data.shape[-1]
        self.now.counts[f"dot.{a.dtype.scalar.name}"] += flops

    def special(self, name: str) -> Callable[..., None]:
        def note(out: Any, *_: Any) -> None:
            self.now.counts[f"special.{name}"] += out.data.size

        return note


def _replacements(hooks: _Hooks) -> Iterator[tuple[Any, str, Any]]:
    """(class, name, method that counts) for the interpreter of Triton 3.6 and of the newest."""

    def around(owner: Any, name: str, hook: Callable[..., Any]) -> tuple[Any, str, Any]:
        original = getattr(owner, name)
        return owner, name, lambda self, *args, **kw: hook(self, original, *args, **kw)

    def after(name: str, note: Callable[..., None]) -> tuple[Any, str, Any]:
        original = getattr(BUILDER, name)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(self, *args, **kwargs)
            note(out, *args, **kwargs)
            return out

        return BUILDER, name, method

    yield around(interpreter.GridExecutor, "__call__", hooks.launch)
    yield around(BUILDER, "set_grid_idx", hooks.program)
    yield after("create_masked_load", hooks.load)
    yield after("create_masked_store", hooks.store)
    yield after("create_atomic_rmw", hooks.atomic)
    yield after("create_dot", hooks.dot)
    for name in SPECIAL:
        yield after(f"create_{name}", hooks.special(name.removeprefix("precise_")))
    for name in filter(lambda name: hasattr(BUILDER, f"create_{name}"), DIVISIONS):
        yield after(f"create_{name}", hooks.special("div"))


def _first_configuration(original: Callable[..., Any]) -> Callable[..., Any]:
    def run(tuner: Any, *args: Any, **kwargs: Any) -> Any:
        configurations = tuner.configs
        tuner.configs = configurations[:1]
        try:
            return original(tuner, *args, **kwargs)
        finally:
            tuner.configs = configurations

    return run


def _loop_bounds() -> tuple[Any, str, Any]:
    """Triton 3.6 makes a loop bound an int in a way that numpy 2.4 no longer allows."""
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    return interpreter, "_patch_lang_tensor", patch


class _TorchOperations(TorchDispatchMode):
    """PyTorch operations as launches: a copy or a sum around a kernel moves bytes too."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.alive: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":
            # a kernel op: its inner operations count, the op itself does not
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            with self:
                return func.redispatch(keys, *args, **kwargs)
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not (func.is_view or "empty" in name):
            launch = Launch(f"torch.{name}")
            named = {argument.name: argument.alias_info for argument in func._schema.arguments}
            given = {**dict(zip(named, args)), **kwargs}
            for key, value in given.items():
                overwritten = bool(named[key] and named[key].is_write)
                if not (overwritten and name in ("copy_", "fill_", "zero_")):
                    self.note(launch, value, writes=False)
            self.note(launch, result, writes=True)
            # an operation that touches no tensor, such as a dtype query, launches nothing
            if launch.accesses:
                self.record.launches.append(launch)
        return result

    def note(self, launch: Launch, tree: Any, writes: bool) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor):
                launch.access(writes, _addresses(leaf), leaf.element_size())
                self.alive.append(leaf)


def _addresses(tensor: torch.Tensor) -> np.ndarray:
    """The address of every element; those repeated by a stride of 0 count once."""
    addresses = np.array(tensor.data_ptr(), dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride()):
        steps = np.arange(size if stride else min(size, 1), dtype=np.int64)
        addresses = addresses[..., None] + steps * stride * tensor.element_size()
    return addresses
