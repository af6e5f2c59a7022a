"""One decode step of the selective state space, in place on the state.

state = exp(dt * A) * state + dt * x (x) B;  out = (state . C + D * x) * silu(z).
Source: mamba-ssm 2.3.2, selective_state_update; Dao & Gu 2024 (arXiv 2405.21060).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    expect_dtype,
    expect_flags,
    expect_in_place,
    expect_ndim,
    expect_rows,
    expect_same_device,
    expect_shape,
    expect_tensors,
    fail,
)
from tvkernels.core.library import kernel_op
from tvkernels.selective_state_update.reference import selective_state_update_ref

__all__ = ["selective_state_update"]

OP = "selective_state_update"


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One token's step of the selective state space; writes the new state into `state`.

        state = exp(dt * A) * state + dt * x (x) B;  out = (state . C + D * x) * silu(z)

    with dt = softplus(dt + dt_bias) if dt_softplus (linear above 20), else dt + dt_bias.

    Args:
        state: (batch, nheads, dim, dstate) or, one head, (batch, dim, dstate); float32 or 16 bit,
            any strides that do not overlap; written in place. Its first size is free if
            state_batch_indices is given.
        x: (batch, nheads, dim) or (batch, dim).
        dt: shape of x, the step size before bias and softplus.
        A: (nheads, dim, dstate) or (dim, dstate), negative for a decay.
        B: (batch, ngroups, dstate) or (batch, dstate); head h uses group h // (nheads / ngroups).
        C: shape of B.
        D: (nheads, dim) or (dim,), the skip weight, or None.
        z: shape of x, the gate, or None.
        dt_bias: (nheads, dim) or (dim,), or None.
        dt_softplus: whether dt goes through softplus.
        state_batch_indices: (batch,) int32 or int64, the row of `state` of each entry, each row
            named at most once; a negative entry is padding: its output is 0, no state is written.

    dt, A, D and dt_bias may be expanded (stride 0) over dim and dstate; what they share is then
    computed once per head (by the kernel if dt, A and dt_bias are all expanded so).

    Returns:
        out: shape and dtype of x.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Numerics: computed in float32 (float64 if x or state is); out is read from the new state before
    that is rounded to the state's dtype. For inference: no gradient flows.
    Source: mamba-ssm 2.3.2, selective_state_update.
    """
    expect_tensors(OP, state=state, x=x, dt=dt, A=A, B=B, C=C)
    optional = {"D": D, "z": z, "dt_bias": dt_bias, "state_batch_indices": state_batch_indices}
    expect_tensors(OP, **{name: t for name, t in optional.items() if t is not None})
    expect_flags(OP, dt_softplus=dt_softplus)
    shape = x.shape
    if state.ndim == 3:
        state = state.unsqueeze(1)
    x, dt, B, C = (t.unsqueeze(1) if t.ndim == 2 else t for t in (x, dt, B, C))
    z = z.unsqueeze(1) if z is not None and z.ndim == 2 else z
    A = A.unsqueeze(0) if A.ndim == 2 else A
    D, dt_bias = (t.unsqueeze(0) if t is not None and t.ndim == 1 else t for t in (D, dt_bias))
    _check(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    reference = backend_for(x, "selective_state_update") == "reference"
    step = selective_state_update_ref if reference else _update
    out = step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices)
    return out.view(shape)


def _check(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    indices: Tensor | None,
) -> None:
    """Every restriction; a missing head dimension has been inserted."""
    expect_ndim(OP, "state", state, "(batch, dim, dstate) or (batch, nheads, dim, dstate)", 4)
    rows, nheads, dim, dstate = state.shape
    expect_ndim(OP, "x", x, "(batch, dim) or (batch, nheads, dim)", 3)
    batch = x.shape[0]
    expect_shape(OP, "x", x, "(batch, nheads, dim)", (batch, nheads, dim))
    expect_shape(OP, "dt", dt, "(batch, nheads, dim)", (batch, nheads, dim))
    expect_shape(OP, "A", A, "(nheads, dim, dstate)", (nheads, dim, dstate))
    expect_shape(OP, "B", B, "(batch, ngroups, dstate)", (batch, None, dstate))
    ngroups = B.shape[1]
    if ngroups == 0 or nheads % ngroups:
        fail(OP, "B", f"have ngroups that divide nheads = {nheads}", ngroups)
    expect_shape(OP, "C", C, "the shape of B", B.shape)
    per_channel = {"D": D, "dt_bias": dt_bias}
    for name, t in per_channel.items():
        if t is not None:
            expect_shape(OP, name, t, "(nheads, dim)", (nheads, dim))
    if z is not None:
        expect_shape(OP, "z", z, "(batch, nheads, dim)", (batch, nheads, dim))
    tensors = dict(state=state, x=x, dt=dt, A=A, B=B, C=C, z=z, **per_channel)
    for name, t in tensors.items():
        if t is not None:
            expect_dtype(OP, name, t)
    expect_in_place(OP, "state", state)
    expect_same_device(OP, **tensors, state_batch_indices=indices)
    if indices is not None:
        expect_rows(OP, "state_batch_indices", indices, batch, rows)
    elif rows != batch:
        fail(
            OP,
            "state",
            f"have batch = {batch} rows, as x",
            rows,
            "name the rows in state_batch_indices",
        )


def _fake_update(state: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@kernel_op("tvkernels::selective_state_update", fake=_fake_update, mutates_args=("state",))
def _update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None,
) -> Tensor:
    """out; every tensor has its head dimension."""
    from tvkernels.selective_state_update.kernel import state_update

    return state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices)
