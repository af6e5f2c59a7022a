"""`kernel_op`: a function that launches kernels, made an operator that PyTorch can see through."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["distinct", "kernel_op"]


def kernel_op(
    name: str, *, fake: Callable[..., Any], mutates_args: Iterable[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as a custom operator, with a short cut in eager mode.

    The body sees only real tensors, so it may import its kernel and ask for strides. The operator
    has no gradient; an autograd.Function around it has.

    Args:
        name: "tvkernels::op_part", unique in the process.
        fake: same parameters; returns empty tensors shaped, typed and strided as the result.
        mutates_args: names of the tensors that the body writes to.

    Returns:
        A decorator. The decorated function takes the body's arguments, by position or by keyword.
    """
    mutated = tuple(mutates_args)

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(body)
        schema = torch.library.infer_schema(body, mutates_args=mutated)

        @functools.wraps(body)
        def run(*args: Any) -> Any:
            # Triton launches on the current device, which may differ from that of the tensors
            x = next((x for x in args if isinstance(x, Tensor) and x.is_cuda), None)
            if x is None or x.get_device() == torch.cuda.current_device():
                return body(*args)
            with torch.cuda.device(x.device):
                return body(*args)

        op = torch.library.custom_op(name, run, mutates_args=mutated, schema=schema)
        op.register_fake(fake)

        @functools.wraps(body)
        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs:
                args = signature.bind(*args, **kwargs).args
            if torch.compiler.is_compiling() or _is_watched(args):
                return op(*args)
            result = run(*args)
            for x in _of_names(signature, mutated, args):
                torch.autograd.graph.increment_version(x)
            return result

        call.op = op  # type: ignore[attr-defined]
        return call

    return decorate


def distinct(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, where one that is given twice is replaced by a view the second time.

    For `Function.apply(*distinct(...))`: torch.compile cannot trace apply with one tensor twice.
    """
    seen: list[Tensor | None] = []
    for x in tensors:
        again = x is not None and any(x is y for y in seen)
        seen.append(x.view_as(x) if x is not None and again else x)
    return seen


def _is_watched(args: tuple[Any, ...]) -> bool:
    """Whether the call must be visible as one operator: to a dispatch mode, a subclass, autograd.

    The dispatcher costs more than a small kernel, so eager calls skip it when nothing watches.
    """
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack():
        return True
    grad = torch.is_grad_enabled()
    return any(
        type(x) not in (Tensor, torch.nn.Parameter) or x.is_meta or (grad and x.requires_grad)
        for x in args
        if isinstance(x, Tensor)
    )


def _of_names(
    signature: inspect.Signature, names: tuple[str, ...], args: tuple[Any, ...]
) -> list[Tensor]:
    if not names:
        return []
    values = signature.bind(*args).arguments
    given = (values.get(name) for name in names)
    return [x for x in given if isinstance(x, Tensor) and not x.is_inference()]
