"""Triton's interpreter, corrected: what kernels compute, on a machine without a GPU.

As shipped (3.6.0 to 3.9.0) it truncates float32 to bfloat16, and adds, multiplies and contracts
bfloat16 as the integers of their bits. Here a bfloat16 is held as a float32, rounded to the nearest
even wherever one comes into being; memory holds its 16 bits. A product of matrices rounds its sums
once, as BLAS sums alike rows in an order that depends on where they stand, which no matrix
instruction does. It also becomes stricter: a masked load without `other` gives NaN in the lanes that
are off, as undefined there as on a GPU.

It runs programs one after the other: it cannot show a race, a missing barrier or a memory order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import util
from typing import Any
from unittest import mock

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and util.find_spec("triton") is not None


def to_bits(x: np.ndarray) -> np.ndarray:
    """The bfloat16 nearest to each float32, ties to even, as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).reshape(np.shape(x))
    rounded = (bits + 0x7FFF + ((bits >> np.uint32(16)) & 1)) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | 0x40
    return np.where(np.isnan(x), quiet, rounded).astype(np.uint16)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The float32 with the value of each bfloat16."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def install() -> None:
    """Correct the interpreter for the rest of the process. Before the first launch, once."""
    from triton.runtime import interpreter

    _hold_bfloat16_as_float32(interpreter)
    _keep_memory_as_it_is(interpreter)
    _allow_dynamic_ranges(interpreter)
    _sum_products_alike(interpreter)


def _is_bf16(dtype: Any) -> bool:
    return getattr(dtype, "scalar", dtype).name == "bf16"


def _hold_bfloat16_as_float32(interpreter: Any) -> None:
    import triton.language as tl

    Handle, Builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
    np_dtype, check, fits = (
        interpreter._get_np_dtype,
        Handle.__post_init__,
        interpreter._validate_np_data_size,
    )
    to_fp, bitcast, fabs, rmw = (
        Builder.create_fp_to_fp,
        Builder.create_bitcast,
        Builder.create_fabs,
        Builder.create_atomic_rmw,
    )

    def held_as(dtype: Any) -> np.dtype:
        return np.dtype(np.float32) if _is_bf16(dtype) else np_dtype(dtype)

    def round_when_made(self: Any) -> None:
        if _is_bf16(self.dtype):
            self.data = from_bits(to_bits(np.asarray(self.data, dtype=np.float32)))
        check(self)

    def cast(self: Any, src: Any, dst: Any) -> Any:
        return Handle(src.data.astype(held_as(dst)), dst.scalar)

    def cast_floats(self: Any, src: Any, dst: Any, rounding: Any) -> Any:
        if _is_bf16(src.dtype):
            src = Handle(src.data, tl.float32)
        if _is_bf16(dst):
            wide = src if src.dtype.scalar == tl.float32 else to_fp(self, src, tl.float32, rounding)
            return Handle(wide.data, tl.bfloat16)
        if src.dtype.scalar == dst.scalar:
            return src
        if {src.dtype.scalar.name, dst.scalar.name} <= {"fp16", "fp32", "fp64"}:
            # numpy rounds to the nearest even; the interpreter's own rounds ties upwards
            return cast(self, src, dst)
        return to_fp(self, src, dst, rounding)

    def reinterpret(self: Any, src: Any, dst: Any) -> Any:
        if _is_bf16(src.dtype):
            src = Handle(to_bits(src.data), tl.uint16)
        if _is_bf16(dst):
            return Handle(from_bits(src.data.view(np.uint16)), tl.bfloat16)
        return bitcast(self, src, dst)

    def absolute(self: Any, x: Any) -> Any:
        return Handle(np.abs(x.data), x.dtype.scalar) if _is_bf16(x.dtype) else fabs(self, x)

    def no_bf16_atomics(self: Any, op: Any, ptr: Any, value: Any, *rest: Any) -> Any:
        if _is_bf16(value.dtype):
            raise NotImplementedError("the interpreter has no bfloat16 atomics")
        return rmw(self, op, ptr, value, *rest)

    interpreter._get_np_dtype = held_as
    interpreter._validate_np_data_size = lambda data, dtype: _is_bf16(dtype) or fits(data, dtype)
    Handle.__post_init__ = round_when_made
    Builder.cast_impl, Builder.create_fp_to_fp = cast, cast_floats
    Builder.create_bitcast, Builder.create_fabs = reinterpret, absolute
    Builder.create_int_to_ptr = Builder.create_ptr_to_int = bitcast
    Builder.create_atomic_rmw = no_bf16_atomics


def _keep_memory_as_it_is(interpreter: Any) -> None:
    Handle, Builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
    native = interpreter._interpreter

    def load(self: Any, ptrs: Any, mask: Any, other: Any, *_: Any) -> Any:
        dtype = ptrs.get_element_ty()
        held = interpreter._get_np_dtype(dtype)
        if other is None:
            # a single lane is left at 0: Triton itself drops `other` there when it is 0
            undefined = np.issubdtype(held, np.floating) and ptrs.data.size > 1
            nothing = np.nan if undefined else 0
            values = np.full(ptrs.data.shape, nothing, dtype=held)
        else:
            values = np.broadcast_to(other.data, ptrs.data.shape)
        lanes = np.broadcast_to(mask.data, ptrs.data.shape)
        _within_fences(ptrs.data[lanes])
        if _is_bf16(dtype):
            bits = native.load(ptrs.data, lanes, to_bits(values), np.dtype(np.uint16))
            return Handle(from_bits(bits), dtype)
        return Handle(native.load(ptrs.data, lanes, values, held), dtype)

    def store(self: Any, ptrs: Any, value: Any, mask: Any, *_: Any) -> Any:
        data = to_bits(value.data) if _is_bf16(value.dtype) else value.data
        _within_fences(ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)])
        return native.store(ptrs.data, data, mask.data)

    Builder.create_masked_load, Builder.create_masked_store = load, store


def _allow_dynamic_ranges(interpreter: Any) -> None:
    """`range(0, tensor)` in Triton 3.6 meets numpy 2.4, which refuses int() of a shaped array."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.reshape(-1)[0])

    interpreter._patch_lang_tensor = patch


def _sum_products_alike(interpreter: Any) -> None:
    Handle, Builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
    dot = Builder.create_dot

    def exact(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if d.data.dtype != np.float32 or a.data.dtype.itemsize == 1:
            return dot(self, a, b, d, *rest)
        with np.errstate(invalid="ignore", over="ignore"):
            product = np.matmul(a.data, b.data, dtype=np.float64).astype(np.float32)
        return Handle(product + d.data, d.dtype.scalar)

    Builder.create_dot = exact


_MAKERS: list[tuple[Any, str]] = [
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
]


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Inside the block, what torch.empty and its kin return is NaN, or the least integer."""
    with ExitStack() as stack:
        for owner, name in _MAKERS:
            stack.enter_context(mock.patch.object(owner, name, _poisoned(getattr(owner, name))))
        yield


def _poisoned(make: Any) -> Any:
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        x = make(*args, **kwargs)
        # detached: inductor makes leaves that want gradients
        x.detach().fill_(_poison(x.dtype))
        return x

    return made


def _poison(dtype: torch.dtype) -> float:
    if dtype == torch.bool:
        return True
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min


# elements before and after a fenced tensor: more than an unmasked tile would touch
FENCE = 2**15
# addresses where fences begin and end, in turn, while there are any
_EDGES: list[int] = []


def _within_fences(addresses: np.ndarray) -> None:
    if _EDGES:
        beside = np.searchsorted(np.array(_EDGES, dtype=np.uint64), addresses, side="right") % 2
        assert not beside.any(), "a kernel reads or writes beside a tensor"


@contextmanager
def fenced_empty() -> Iterator[None]:
    """As `poisoned_empty`, with FENCE elements of poison before and after each tensor. In the
    interpreter an access to a fence fails at once; compiled, a write to a fence fails at the end."""
    fences: list[tuple[torch.Tensor, float]] = []

    def fenced(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = make(*args, **kwargs)
            if not x.numel():
                return x
            value = _poison(x.dtype)
            span = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride()))
            base = torch.full((FENCE + span + FENCE,), value, dtype=x.dtype, device=x.device)
            for side in (base[:FENCE], base[FENCE + span :]):
                fences.append((side, value))
                begin = side.data_ptr()
                _EDGES.extend((begin, begin + FENCE * x.element_size()))
            _EDGES.sort()
            return x.detach().set_(base.untyped_storage(), FENCE, x.shape, x.stride())

        return made

    try:
        with ExitStack() as stack:
            for owner, name in _MAKERS:
                stack.enter_context(mock.patch.object(owner, name, fenced(getattr(owner, name))))
            yield
    finally:
        _EDGES.clear()
    for side, value in fences:
        assert bool((side.isnan() if value != value else side == value).all()), "written beside"


def lazily(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> torch.Tensor:
    """A tensor over storage that, on a CPU, costs memory only where it is touched.

    For offsets past 2^31 elements; `torch.empty` would not do, as tests fill it with NaN.
    """
    elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
    storage = torch.UntypedStorage(elements * dtype.itemsize, device=device or "cpu")
    return torch.tensor([], dtype=dtype, device=device).set_(storage, 0, shape, strides)
