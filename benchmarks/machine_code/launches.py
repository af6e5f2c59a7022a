"""Every kernel launch of a piece of code on meta tensors, as Triton would specialise it.

No GPU and no memory is needed: the public ops run on tensors without storage, so a launch has the
strides, divisibility and sizes of the real model, in every configuration that it ships.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from benchmarks.machine_code.targets import Target
from tvkernels.core import backend
from tvkernels.core.tune import Tuned


@dataclass(frozen=True)
class Launch:
    """One compilation that a launch asks for."""

    kernel: JITFunction
    case: str
    """the name of the case that made the launch"""
    config: str
    """the tuned arguments and launch options, as "BLOCK=1024 warps=4 stages=3" """
    grid: tuple[int, ...]
    signature: Mapping[str, str]
    constexprs: Mapping[tuple[int, ...], Any]
    attrs: Mapping[tuple[int, ...], Any]
    options: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def key(self) -> str:
        """Equal for launches that run the same machine code."""
        parts = (self.signature, self.constexprs, self.attrs, self.options)
        return "|".join([self.kernel.cache_key, *(repr(sorted(p.items())) for p in parts)])


@contextmanager
def recorded(target: Target, case: str) -> Iterator[list[Launch]]:
    """Record the launches inside the block, on meta tensors, as on `target`; no kernel runs.

    Each launch of a tuned kernel counts once per configuration that `target` has.
    """
    launches: list[Launch] = []

    def tuned(self: Tuned, *args: Any, **launch: Any) -> None:
        for config in self.configs(target.name):
            self.fn.run(*args, **launch, **config.all_kwargs())

    def plain(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(_launch(self, target, case, grid, args, kwargs))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Tuned, "run", tuned))
        stack.enter_context(mock.patch.object(JITFunction, "run", plain))
        # Triton, though the tensors lie on no device that it runs on
        stack.enter_context(mock.patch.object(backend, "_obstacle", return_value=None))
        stack.enter_context(backend.use_backend("triton"))
        stack.enter_context(_Bodies())
        yield launches


class _Bodies(TorchDispatchMode):
    """Runs the body of our operators on meta tensors; PyTorch would call only their fake."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace != "tvkernels":
            return func(*args, **(kwargs or {}))
        with self:
            return OPDEFS[func.name().split(".")[0]]._init_fn(*args, **(kwargs or {}))


class _Pointer:
    """A meta tensor as the launcher sees it: dtype, alignment and how far it may reach.

    Storage is aligned as every allocator of a GPU aligns it; a view is as its offset leaves it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self._address = tensor.storage_offset() * tensor.element_size()
        self._size = tensor.untyped_storage().size()

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return self._size


def _launch(
    kernel: JITFunction, target: Target, case: str, grid: Any, args: tuple[Any, ...], kwargs: Any
) -> Launch:
    """The launch as the JIT specialises it: the JIT's own binder decides types and attributes."""
    on = make_backend(target.triton)
    binder = create_function_from_signature(kernel.signature, kernel.params, on)
    values = [_Pointer(a) if isinstance(a, Tensor) else a for a in args]
    named = {k: _Pointer(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    bound, specialization, extra = binder(*values, **named)
    options, signature, constexprs, attrs = kernel._pack_args(
        on, named, bound, specialization, extra
    )
    grid = grid(bound) if callable(grid) else grid
    label, sizes = _label(kernel, named, options), tuple(map(int, grid))
    return Launch(kernel, case, label, sizes, signature, constexprs, attrs, vars(options))


def _label(kernel: JITFunction, named: Mapping[str, Any], options: Any) -> str:
    """The constexpr arguments in capitals (blocks and switches), then the launch options."""
    constants = [p.name for p in kernel.params if p.is_constexpr and p.name in named]
    words = [f"{name}={named[name]}" for name in constants if name.isupper()]
    words.append(f"warps={options.num_warps}")
    if "num_stages" in inspect.signature(type(options)).parameters:
        words.append(f"stages={options.num_stages}")
    return " ".join(words)
