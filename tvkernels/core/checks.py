"""Argument checks of public functions, one wording: `op: argument must ... (reason), got ...`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, NoReturn

import torch

__all__ = [
    "FLOAT_DTYPES",
    "INDEX_DTYPES",
    "ArgumentError",
    "Offsets",
    "expect_choice",
    "expect_device",
    "expect_dtype",
    "expect_flags",
    "expect_in_place",
    "expect_int",
    "expect_limits",
    "expect_ndim",
    "expect_number",
    "expect_offsets",
    "expect_rows",
    "expect_same_device",
    "expect_shape",
    "expect_tensors",
    "fail",
    "is_int",
    "on_host",
]

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INDEX_DTYPES = (torch.int32, torch.int64)

# cu_seqlens: where each packed sequence begins, and where the last one ends
Offsets = torch.Tensor | Sequence[int]


class ArgumentError(ValueError):
    """A wrong argument: `op: argument must <rule>, got <value>[; <remedy>]`.

    Its args are this sentence and the argument's name. (torch.compile traces no __init__ here.)
    """

    def __str__(self) -> str:
        sentence: str = self.args[0]
        return sentence

    @property
    def argument(self) -> str:
        """The name of the argument."""
        name: str = self.args[1]
        return name


def fail(op: str, argument: str, rule: str, value: Any, remedy: str | None = None) -> NoReturn:
    """Raise the ArgumentError `op: argument must <rule>, got <value>[; <remedy>]`."""
    tail = f"; {remedy}" if remedy else ""
    raise ArgumentError(f"{op}: {argument} must {rule}, got {value}{tail}", argument)


def expect_ndim(op: str, argument: str, x: torch.Tensor, layout: str, *ndims: int) -> None:
    """`x` has one of `ndims` dimensions; `layout` names them, as "(batch, seqlen, dim)"."""
    _expect_tensor(op, argument, x)
    if x.ndim not in ndims:
        fail(op, argument, f"be {layout}", f"shape {tuple(x.shape)}")


def expect_shape(
    op: str, argument: str, x: torch.Tensor, layout: str, sizes: Sequence[int | None]
) -> None:
    """`x` has shape `sizes` (None: any size); `layout` names the dimensions for the message."""
    _expect_tensor(op, argument, x)
    fits = x.ndim == len(sizes) and all(
        want is None or have == want for have, want in zip(x.shape, sizes)
    )
    if not fits:
        # f-strings alone: torch.compile formats a dynamic size in them, and not with str()
        want = ", ".join(["any" if size is None else f"{size}" for size in sizes])
        fail(op, argument, f"be {layout} = ({want})", f"shape {tuple(x.shape)}")


def expect_dtype(
    op: str, argument: str, x: torch.Tensor, dtypes: Sequence[torch.dtype] = FLOAT_DTYPES
) -> None:
    """`x` has one of `dtypes`."""
    _expect_tensor(op, argument, x)
    if x.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        fail(op, argument, f"be of dtype {names}", str(x.dtype).removeprefix("torch."))


def expect_same_device(op: str, **tensors: torch.Tensor | None) -> None:
    """Every tensor given (None is skipped) lies on the device of the first."""
    given = [(name, x) for name, x in tensors.items() if x is not None]
    expect_tensors(op, **dict(given))
    first_name, first = given[0]
    for name, x in given[1:]:
        if x.device != first.device:
            fail(op, name, f"lie on the device of {first_name} ({first.device})", x.device)


def expect_tensors(op: str, **values: Any) -> None:
    """Each value is a dense tensor."""
    for name, value in values.items():
        _expect_tensor(op, name, value)


def expect_flags(op: str, **values: Any) -> None:
    """Each value is True or False (or 1 or 0)."""
    for name, value in values.items():
        if not (isinstance(value, int) and value in (0, 1)):
            fail(op, name, "be True or False", _named(value))


def expect_in_place(op: str, argument: str, x: torch.Tensor) -> None:
    """`x` can be written in place: no two elements share memory, and autograd allows it."""
    # a test of the usual layouts saves most of the host time
    if not (x.is_contiguous() or (x.ndim > 1 and x.mT.is_contiguous())) and _overlaps(x):
        rule = "have no two elements at one place in memory (it is written in place)"
        got = f"shape {tuple(x.shape)} with strides {x.stride()}"
        fail(op, argument, rule, got, "call .contiguous() first")
    if x.requires_grad and torch.is_grad_enabled():
        owner = x if x._base is None else x._base
        if owner.is_leaf:
            rule = "not be a leaf that requires gradients (it is written in place)"
            fail(op, argument, rule, "requires_grad=True", "pass its .detach()")


def expect_device(op: str, argument: str, value: Any) -> None:
    """`value` is None or names a device that PyTorch can use here."""
    if not (value is None or isinstance(value, (str, torch.device)) or is_int(value)):
        fail(op, argument, "be a device or None", _named(value))
    if value is None or torch.compiler.is_compiling():
        return
    try:
        torch.empty(0, device=value)
    # PyTorch raises AssertionError for a backend that it was built without
    except (RuntimeError, AssertionError):
        fail(op, argument, "be a device that PyTorch can use here, or None", repr(value))


def expect_choice(op: str, argument: str, value: Any, choices: Sequence[str | None]) -> None:
    """`value` is one of `choices`, which are strings or None."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        *first, last = [repr(choice) for choice in choices]
        fail(op, argument, f"be {', '.join(first)} or {last}", _named(value))


def expect_number(
    op: str, argument: str, value: Any, rule: str = "be a number", least: float | None = None
) -> None:
    """`value` is a float or an int (no bool, no tensor), at least `least`; `rule` says so."""
    if not _is_number(value) or not (least is None or value >= least):
        fail(op, argument, rule, _named(value))


def expect_limits(
    op: str,
    argument: str,
    value: Any,
    rule: str = "be (least, greatest)",
    lowest: float = -math.inf,
) -> None:
    """`value` is (least, greatest), two numbers in order, none below `lowest`; `rule` says so."""
    is_pair = isinstance(value, Sequence) and len(value) == 2
    if not (is_pair and _is_number(value[0]) and _is_number(value[1])):
        fail(op, argument, "be (least, greatest), two numbers", _named(value))
    if not lowest <= value[0] <= value[1]:
        fail(op, argument, rule, value)


def expect_int(
    op: str, argument: str, value: Any, rule: str, least: int, most: int | None = None
) -> None:
    """`value` is an int (no bool, no float) from `least` to `most`; `rule` says so in words."""
    if not is_int(value) or value < least or (most is not None and value > most):
        fail(op, argument, rule, _named(value))


def expect_offsets(op: str, argument: str, offsets: Offsets, total: int, *, exact: bool) -> None:
    """`offsets` of packed sequences start at 0, never fall and end at `total`, or before it unless
    `exact`. Values that lie on a device are not read."""
    if isinstance(offsets, torch.Tensor):
        expect_ndim(op, argument, offsets, "(n_seqs + 1,)", 1)
        expect_dtype(op, argument, offsets, INDEX_DTYPES)
        if not on_host(offsets):
            return
        values = offsets.tolist()
    elif isinstance(offsets, Sequence) and all(map(is_int, offsets)):
        values = list(offsets)
    else:
        fail(op, argument, "be a tensor or a sequence of ints", repr(offsets))
    rises = bool(values) and values[0] == 0 and all(a <= b for a, b in pairwise(values))
    if not rises or values[-1] > total or (exact and values[-1] != total):
        end = total if exact else f"at most {total}"
        fail(op, argument, f"rise from 0 to {end} (the packed length)", values)


def expect_rows(
    op: str, argument: str, indices: torch.Tensor, batch: int, rows: int, *, writes: bool = True
) -> None:
    """`indices` (batch,) are rows of a tensor that has `rows` of them, or negative for none, each
    named once if it is written. Values that lie on a device are not read."""
    expect_shape(op, argument, indices, "(batch,)", (batch,))
    expect_dtype(op, argument, indices, INDEX_DTYPES)
    named = sorted(row for row in indices.tolist() if row >= 0) if on_host(indices) else []
    if named and named[-1] >= rows:
        fail(op, argument, f"be below {rows} (the rows of the state)", indices.tolist())
    if writes and any(a == b for a, b in pairwise(named)):
        fail(op, argument, "name each row at most once (it is written)", indices.tolist())


def is_int(value: Any) -> bool:
    """Whether `value` is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def on_host(x: torch.Tensor) -> bool:
    """Whether the values of `x` can be read without a host sync and without breaking a trace."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Real)) and not isinstance(value, bool)


def _overlaps(x: torch.Tensor) -> bool:
    """Whether elements of `x` may share memory: not if each stride is longer than all that lies
    within the shorter ones, as in every view of a contiguous tensor but expanded and unfolded ones.
    """
    # no sort: torch.compile cannot sort dynamic sizes
    dims = [(stride, size) for stride, size in zip(x.stride(), x.shape) if size > 1]
    return any(
        stride <= sum((n - 1) * s for j, (s, n) in enumerate(dims) if s <= stride and j != i)
        for i, (stride, _) in enumerate(dims)
    )


def _named(value: Any) -> str:
    """What a sentence says of a value of the wrong kind: a tensor's kind, not its elements."""
    return f"a {type(value).__name__}" if hasattr(value, "shape") else repr(value)


def _expect_tensor(op: str, argument: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        fail(op, argument, "be a tensor", f"a {type(x).__name__}")
    if x.is_nested:
        fail(op, argument, "be a dense tensor", "a nested one", "pad it, or pack it in one row")
    if x.layout != torch.strided:
        got = f"layout {str(x.layout).removeprefix('torch.')}"
        fail(op, argument, "be a dense tensor", got, "call .to_dense() first")
