"""Helpers in plain PyTorch that references share, and `first_order`, which ops use too."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_order", "gather_rows", "no_autocast", "one_operator", "scatter_rows", "widest"]


def first_order(op: str) -> Callable[[Any], Any]:
    """Decorate the backward of an autograd.Function that has no second derivative.

    A second derivative raises NotImplementedError. torch's once_differentiable raises only if a
    gradient that backward gets requires one, and only in `backward()`: with `y.sum()`, or in
    `torch.autograd.grad`, the part that comes through the saved tensors is left out in silence.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def once(ctx: Any, *grads: Any) -> Any:
            # a patched model's own function gives these gradients (integrations/serving.py)
            if getattr(ctx, "replaced", False):
                return (None,) * len(ctx.needs_input_grad)
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return backward(ctx, *grads)
            ctx = _Unpacked(ctx)
            given = (*grads, *ctx.saved_tensors)
            sources = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
            return _Once.apply(op, lambda: backward(ctx, *grads), *sources)

        return once

    return decorate


class _Unpacked:
    """The context of a backward, whose tensors torch.utils.checkpoint lets it unpack once only."""

    def __init__(self, ctx: Any) -> None:
        self._ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


class _Once(torch.autograd.Function):
    """The gradients, as results of all tensors that they depend on; backward raises."""

    @staticmethod
    def forward(ctx: Any, op: str, backward: Callable[[], Any], *sources: Tensor) -> Any:
        ctx.op = op
        return backward()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{ctx.op}: only first order gradients, got a second derivative")


def one_operator(name: str, *, fake: Callable[..., Any]) -> Callable[[Any], Any]:
    """Decorate a function whose loops depend on a length: torch.compile sees one operator.

    Otherwise the compiler would unroll the loops and compile every length anew. Eager calls are
    plain calls, so dispatch modes see what the body does. The operator has no gradient; an
    autograd.Function around it has.

    Args:
        name: "tvkernels::op_part", unique in the process.
        fake: same parameters; returns empty tensors shaped, typed and strided as the result, none
            of which may be an argument.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        op = torch.library.custom_op(name, body, mutates_args=())
        op.register_fake(fake)

        @functools.wraps(body)
        def call(*args: Any) -> Any:
            is_traced = torch.compiler.is_compiling() or _in_make_fx() or _without_values(args)
            return op(*args) if is_traced else body(*args)

        return call

    return decorate


def _in_make_fx() -> bool:
    # it refuses to read a value, as a body does that looks for NaN
    proxy = torch._C._TorchDispatchModeKey.PROXY
    return torch._C._get_dispatch_mode(proxy) is not None


def _without_values(args: tuple[Any, ...]) -> bool:
    """Whether a tensor is on the meta device or of a subclass, such as FakeTensor."""
    return any(
        x.is_meta or type(x) not in (Tensor, torch.nn.Parameter)
        for x in args
        if isinstance(x, Tensor)
    )


def no_autocast(x: Tensor) -> torch.autocast:
    """A context in which autocast does not lower matrix products on the device of `x`."""
    # autocast does not know the meta device; nothing is computed there, so name the CPU
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def widest(x: Tensor, op: str, lost: str) -> torch.dtype:
    """float64, or float32 with a warning that says what is lost where x's device has no float64."""
    if x.device.type != "mps":
        if torch.compiler.is_compiling() or x.is_meta:
            return torch.float64
        try:
            x.new_empty(0, dtype=torch.float64)
            return torch.float64
        except TypeError:
            pass
    warnings.warn(f"{op}: {x.device.type} has no float64, so {lost}", stacklevel=2)
    return torch.float32


def gather_rows(states: Tensor, indices: Tensor | None) -> Tensor:
    """The rows that `indices` name (None: all); a padding entry (negative) reads row 0."""
    return states if indices is None else states.index_select(0, indices.clamp_min(0))


def scatter_rows(states: Tensor, indices: Tensor, new: Tensor) -> None:
    """Write `new` into the rows named by `indices`; padding entries (negative) write nothing.

    No value is read on the host, so there is no host sync: a padding entry repeats the write of a
    live entry; where no entry is live, all of them write row 0 back unchanged.
    """
    if not indices.shape[0]:
        return
    live = indices >= 0
    source = torch.where(live, torch.arange(len(live), device=live.device), live.int().argmax())
    row = indices.clamp_min(0).long()[source]
    keep = live[source].view(-1, *[1] * (states.ndim - 1))
    states.index_copy_(0, row, new.to(states.dtype)[source].where(keep, states[row]))
