"""Count bytes and FLOPs of Triton launches and PyTorch operations, without a GPU.

    with counting() as launches:
        fn()
    totals(launches)["cold_read"]

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
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import triton.runtime.interpreter as interpreter
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.autotuner import Autotuner

SECTOR = 32
BUILDER = interpreter.InterpreterBuilder
SPECIAL = ("cos", "erf", "exp", "exp2", "log", "log2", "rsqrt", "sin", "sqrt", "precise_sqrt")
# Triton 3.6 and the newest do not have the same ones
DIVISIONS = ("fdiv", "precise_divf", "approx_divf")
OVERWRITING = ("copy_", "fill_", "zero_")
# replaces a method: takes the method, then its arguments
Hook = Callable[..., Any]


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


def totals(launches: Iterable[Launch]) -> Counter[str]:
    """All counts added up, with launches, cold_read and cold_write.

    cold: distinct bytes of each launch, as if no launch found anything in the cache.
    """
    total: Counter[str] = Counter()
    for launch in launches:
        cold = {"cold_read": launch.distinct(False), "cold_write": launch.distinct(True)}
        total.update(launch.counts)
        total.update(cold, launches=1)
    return total


@contextlib.contextmanager
def counting(kernels: Collection[str] | None = None) -> Iterator[list[Launch]]:
    """Count every Triton launch and PyTorch operation inside the block, backward passes included.

    Args:
        kernels: names of the only kernels that run and count; the others' results are missing.

    Raises:
        RuntimeError: another counting is in progress.
    """
    if BUILDER.create_dot.__module__ == __name__:
        raise RuntimeError("counting: blocks cannot be nested")
    counter = _Counter(kernels)
    with interpretable(), _hooked(counter.hooks()), counter:
        yield counter.launches


@contextlib.contextmanager
def interpretable() -> Iterator[None]:
    """Let any kernel run in the interpreter: autotuned ones, and loops to a loaded bound."""
    loops = (interpreter, "_patch_lang_tensor", _loop_bounds)
    with _hooked([(Autotuner, "run", _first_configuration), loops]), np.errstate(all="ignore"):
        yield


@contextlib.contextmanager
def _hooked(hooks: Iterable[tuple[Any, str, Hook]]) -> Iterator[None]:
    def method(hook: Hook, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: hook(original, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for owner, name, hook in hooks:
            new = method(hook, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, new))
        yield


def _noted(note: Callable[..., None]) -> Hook:
    """A hook that looks at the arguments, then runs the method."""

    def hook(original: Any, *args: Any, **kwargs: Any) -> Any:
        note(*args, **kwargs)
        return original(*args, **kwargs)

    return hook


def _first_configuration(original: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
    with mock.patch.object(tuner, "configs", tuner.configs[:1]):
        return original(tuner, *args, **kwargs)


def _loop_bounds(original: Any, tensor: Any, scope: Any) -> None:
    """Triton 3.6 makes a loop bound an int in a way that numpy 2.4 no longer allows."""
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


class _Counter(TorchDispatchMode):
    """Counts the calls of the interpreter's methods, for the launch in progress.

    PyTorch operations are launches too: a copy or a sum around a kernel moves bytes.
    """

    def __init__(self, kernels: Collection[str] | None) -> None:
        super().__init__()
        self.kernels = kernels
        self.launches: list[Launch] = []
        # keep every tensor alive: another one could get a freed address
        self.alive: list[Any] = []

    def hooks(self) -> Iterator[tuple[Any, str, Hook]]:
        methods: dict[str, Callable[..., None]] = {
            "set_grid_idx": self.program,
            "create_masked_load": lambda _, ptrs, mask, *rest: self.memory("r", ptrs, mask),
            "create_masked_store": lambda _, ptrs, x, mask, *rest: self.memory("w", ptrs, mask),
            "create_atomic_rmw": lambda _, op, ptrs, x, mask, *rest: self.memory("rw", ptrs, mask),
            "create_dot": self.dot,
        }
        named = {name: name.removeprefix("precise_") for name in SPECIAL}
        for function, name in (named | dict.fromkeys(DIVISIONS, "div")).items():
            methods[f"create_{function}"] = partial(self.special, name)
        yield interpreter.GridExecutor, "__call__", self.launch
        for name in methods.keys() & vars(BUILDER).keys():
            yield BUILDER, name, _noted(methods[name])

    def launch(self, original: Any, executor: Any, *args: Any, **kwargs: Any) -> Any:
        if self.kernels is not None and executor.fn.__name__ not in self.kernels:
            return None
        self.alive += [a for a in [*args, *kwargs.values()] if isinstance(a, torch.Tensor)]
        self.launches.append(Launch(executor.fn.__name__))
        with _disable_current_modes():
            return original(executor, *args, **kwargs)

    @property
    def now(self) -> Launch:
        return self.launches[-1]

    def program(self, builder: Any, x: int, y: int, z: int) -> None:
        """Programs are numbered as the hardware starts them: axis 0 fastest."""
        nx, ny, _ = self.now.grid = builder.grid_dim
        self.now.program = x + nx * (y + ny * z)
        self.now.counts["programs"] += 1

    def memory(self, modes: str, ptrs: Any, mask: Any) -> None:
        lanes = np.broadcast_to(np.asarray(mask.data, dtype=bool), ptrs.data.shape)
        width = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        for mode in modes:
            self.now.access(mode == "w", ptrs.data[lanes], width)

    def dot(self, builder: Any, a: Any, b: Any, *rest: Any) -> None:
        self.now.counts[f"dot.{a.dtype.scalar.name}"] += 2 * a.data.size * b.data.shape[-1]

    def special(self, name: str, builder: Any, x: Any, *rest: Any) -> None:
        self.now.counts[f"special.{name}"] += x.data.size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
            for key, value in {**dict(zip(named, args)), **kwargs}.items():
                written = named[key] and named[key].is_write
                if not (written and name in OVERWRITING):
                    self.tensors(launch, value, writes=False)
            self.tensors(launch, result, writes=True)
            # an operation that touches no tensor, such as a dtype query, launches nothing
            self.launches += [launch] if launch.accesses else []
        return result

    def tensors(self, launch: Launch, tree: Any, writes: bool) -> None:
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
