"""A call of other people's code: on an op or, where the op would refuse it, on their own function.

There is one mechanism for every function that is replaced. What the op refuses is known in two
ways: some calls are inside a transformation of PyTorch's that no op is made for, and the op's own
checks refuse the others with an error, before anything is written. Each refused call is counted,
with the reason, so that no call falls back in silence.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import BackwardCFunction

from tvkernels.causal_conv1d import causal_conv1d_update
from tvkernels.core.checks import FLOAT_DTYPES, ArgumentError, fail
from tvkernels.core.holds import LOCK
from tvkernels.selective_state_update import selective_state_update

__all__ = ["Fallback", "Fallbacks", "serving", "words_of"]

# these write their state in place and have no backward
_UPDATES = (causal_conv1d_update, selective_state_update)
_DTYPES = [dtype for dtype in FLOAT_DTYPES if dtype != torch.float64]

Call: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Fallback:
    """Calls that went to the function that was there before, for one reason.

    Attributes:
        model: the model's folder in transformers.
        name: the function, or the class and its method.
        reason: why the op does not serve the call; the sentence of the first such call.
        calls: how many there were. A compiled call counts once, when it is compiled.
    """

    model: str
    name: str
    reason: str
    calls: int


class Fallbacks:
    """Counts of calls that were not served, by function and kind of reason."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], Fallback] = {}

    def note(self, model: str, name: str, kind: str, reason: str) -> None:
        """Count one call. The kinds are few, the reasons are not: they hold shapes."""
        with LOCK:
            before = self._rows.get((model, name, kind), Fallback(model, name, reason, 0))
            row = Fallback(model, name, before.reason, before.calls + 1)
            self._rows[model, name, kind] = row

    def rows(self) -> tuple[Fallback, ...]:
        """One row for each function and kind of reason, in the order of their first calls."""
        with LOCK:
            return tuple(self._rows.values())


def words_of(function: Call) -> list[str]:
    """The names of its positional arguments, with `hidden_states` renamed to `x` as in our ops.

    With Hugging Face's kernels installed, `function` is a module.
    """
    parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    words = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return ["x" if word == "hidden_states" else word for word in words]


def serving(
    ours: Call,
    before: Call,
    note: Callable[[str, str], None],
    words: list[str],
    owner: Callable[[Any, Any], dict[str, Any]] | None = None,
) -> Call:
    """`ours` with the calling convention of `before`, which gets the calls that `ours` refuses.

    Args:
        ours: the op.
        before: the function that it replaces, whose positional arguments are `words`.
        note: called with the kind and the reason of each call that goes to `before`.
        words: names of the positional arguments, in the terms of `ours`.
        owner: where `before` is a method: the arguments that self and x add to the call.
    """
    parameters = inspect.signature(ours).parameters
    required = [p.name for p in parameters.values() if p.default is p.empty]
    update = ours in _UPDATES

    # torch.compile calls these two once while it traces, instead of tracing them
    torch.compiler.assume_constant_result(_inside_torch_func)

    @torch.compiler.assume_constant_result
    def noted(kind: str, reason: str) -> None:
        note(kind, reason)

    def try_ours(given: dict[str, Any], packed: bool) -> tuple[Any, str, str]:
        """The result of `ours`, or the kind and the reason of its refusal."""
        mine = {name: value for name, value in given.items() if name in parameters}
        try:
            for name in required:
                if name not in mine:
                    fail(ours.__name__, name, "be given", "nothing")
            return ours(**mine), "", ""
        except ArgumentError as error:
            if packed:
                raise
            # a dynamic size in the sentence is unknown while torch.compile traces
            compiling = torch.compiler.is_compiling()
            return None, error.args[1], f"its {error.args[1]}" if compiling else error.args[0]
        except NotImplementedError as error:
            if packed:
                raise
            return None, str(error), str(error)

    @functools.wraps(before)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(words, args)), **kwargs}
        if "hidden_states" in given:
            given["x"] = given.pop("hidden_states")
        kind = "unknown arguments" if len(args) > len(words) else _obstacle(given)
        if not kind and update and _needs_gradients(given):
            kind = "a step that needs gradients"
        packed = given.get("seq_idx") is not None or given.get("cu_seqlens") is not None
        if packed:
            _check_packed(ours.__name__, given, not kind and "seq_idx" in parameters)
        reason = kind
        if not kind:
            more = {} if owner is None else owner(given.pop("self"), given["x"])
            out, kind, reason = try_ours(given | more, packed)
        if not kind:
            if torch.compiler.is_compiling() or not _needs_gradients(given | more):
                return out
            return _with_second_order(out, before, noted, args, kwargs, more.get("weight"))
        noted(kind, reason)
        return before(*args, **kwargs)

    return stand_in


def _with_second_order(
    out: Any,
    before: Call,
    note: Callable[[str, str], None],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    weight: Tensor | None,
) -> Any:
    """`out`, through a node that takes higher derivatives, which no op has, from `before`."""
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    values, count, names = [*args, *kwargs.values()], len(args), list(kwargs)
    slots = [i for i, value in enumerate(values) if isinstance(value, Tensor)]

    def again(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        note("a second derivative", "a second derivative, or a batch of gradients")
        filled = list(values)
        for i, x in zip(slots, tensors):
            filled[i] = x
        result = before(*filled[:count], **dict(zip(names, filled[count:])))
        return (result,) if isinstance(result, Tensor) else tuple(result)

    inputs = [values[i] for i in slots] + ([] if weight is None else [weight])
    for i in slots:
        values[i] = None
    outs = _SecondOrder.apply(again, len(outs), *outs, *inputs)
    return outs[0] if isinstance(out, Tensor) else outs


class _SecondOrder(torch.autograd.Function):
    """The outputs of an op, passed through. Its first derivative is the op's; if that is to be
    differentiated again, or is taken for a batch of gradients, it is the function's of before."""

    @staticmethod
    def forward(ctx: Any, again: Call, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.again, ctx.count = again, count
        ctx.save_for_backward(*tensors[count:])
        return tuple(x.detach() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        replaced = torch.is_grad_enabled() or any(map(_is_batch, douts))
        _mark_nodes(ctx.next_functions[: ctx.count], inputs, replaced)
        if not replaced:
            return (None, None, *douts, *(None for _ in inputs))
        again = torch.is_grad_enabled()
        if not again:
            # the graph of the inputs may be used up; a parameter has none, and stays itself
            inputs = [
                x if x.is_leaf else x.detach().requires_grad_(x.requires_grad) for x in inputs
            ]
        with torch.enable_grad():
            outs = ctx.again(inputs)
        pairs = [(y, dy) for y, dy in zip(outs, douts) if y.requires_grad]
        wrt = [x for x in inputs if x.requires_grad]
        grads = iter(
            torch.autograd.grad(
                [y for y, _ in pairs], wrt, [dy for _, dy in pairs],
                create_graph=again, allow_unused=True,
            )
        )  # fmt: skip
        found = (next(grads) if x.requires_grad else None for x in inputs)
        return (None, None, *(None for _ in douts), *found)


def _mark_nodes(
    edges: tuple[tuple[Any, int], ...], inputs: tuple[Tensor, ...], replaced: bool
) -> None:
    """Tell the op's nodes, which lie between `edges` and `inputs`, whether to return no gradient.

    Autograd runs them in any case, then with gradients of 0 (core/plain.py, first_order).
    """
    seen = {x.grad_fn for x in inputs}
    found = [node for node, _ in edges]
    while found:
        node = found.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            node.replaced = replaced  # type: ignore[attr-defined]
        found += [before for before, _ in node.next_functions]


def _obstacle(given: Mapping[str, Any]) -> str:
    """Why no op may get this call, though its arguments may be right; empty if one may."""
    x = given.get("x")
    if torch.compiler.is_exporting():
        return "torch.export"
    if torch.jit.is_tracing():
        return "torch.jit.trace"
    if _inside_torch_func():
        return "a transformation of torch.func"
    if forward_ad._current_level >= 0 and any(map(_has_tangent, given.values())):
        return "forward-mode AD"
    if not isinstance(x, Tensor):
        return "x is not a tensor"
    if x.dtype not in _DTYPES:
        return f"x is of dtype {str(x.dtype).removeprefix('torch.')}"
    if given.get("activation") not in (None, "silu", "swish"):
        return f"the activation is {given['activation']!r}"
    return ""


def _inside_torch_func() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_batch(x: Tensor) -> bool:
    """Whether `x` stands for a batch of gradients, as with is_grads_batched."""
    functorch = torch._C._functorch
    return bool(functorch.is_legacy_batchedtensor(x) or functorch.is_batchedtensor(x))


def _has_tangent(x: Any) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def _needs_gradients(given: Mapping[str, Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in given.values()
    )


def _check_packed(op: str, given: Mapping[str, Any], served: bool) -> None:
    """Refuse packed sequences unless the op gets the seq_idx that separates them."""
    if not served:
        fail(op, "seq_idx", "be None here (packed sequences would not be kept apart)", "a tensor")
    if given.get("seq_idx") is None:
        fail(
            op, "cu_seqlens", "come with seq_idx, which keeps packed sequences apart", "no seq_idx"
        )
