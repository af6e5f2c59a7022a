"""Argument checks of public functions, one wording: `op: argument must ... (reason), got ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

__all__ = [
    "FLOAT_DTYPES",
    "INDEX_DTYPES",
    "expect_dtype",
    "expect_ndim",
    "expect_same_device",
    "expect_shape",
    "fail",
]

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INDEX_DTYPES = (torch.int32, torch.int64)


def fail(op: str, argument: str, rule: str, value: Any, remedy: str | None = None) -> NoReturn:
    """Raise the ValueError `op: argument must <rule>, got <value>[; <remedy>]`."""
    tail = f"; {remedy}" if remedy else ""
    raise ValueError(f"{op}: {argument} must {rule}, got {value}{tail}")


def expect_ndim(op: str, argument: str, x: torch.Tensor, layout: str, *ndims: int) -> None:
    """`x` has one of `ndims` dimensions; `layout` names them, as "(batch, seqlen, dim)"."""
    if x.ndim not in ndims:
        fail(op, argument, f"be {layout}", f"shape {tuple(x.shape)}")


def expect_shape(
    op: str, argument: str, x: torch.Tensor, layout: str, sizes: Sequence[int | None]
) -> None:
    """`x` has shape `sizes` (None: any size); `layout` names the dimensions for the message."""
    fits = x.ndim == len(sizes) and all(
        want is None or have == want for have, want in zip(x.shape, sizes)
    )
    if not fits:
        want = "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"
        fail(op, argument, f"be {layout} = {want}", f"shape {tuple(x.shape)}")


def expect_dtype(
    op: str, argument: str, x: torch.Tensor, dtypes: Sequence[torch.dtype] = FLOAT_DTYPES
) -> None:
    """`x` has one of `dtypes`."""
    if x.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        fail(op, argument, f"be of dtype {names}", str(x.dtype).removeprefix("torch."))


def expect_same_device(op: str, **tensors: torch.Tensor | None) -> None:
    """Every tensor given (None is skipped) lies on the device of the first."""
    given = [(name, x) for name, x in tensors.items() if x is not None]
    first_name, first = given[0]
    for name, x in given[1:]:
        if x.device != first.device:
            fail(op, name, f"lie on the device of {first_name} ({first.device})", x.device)
