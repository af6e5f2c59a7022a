"""Decode steps of Mamba-2's state space that keep the last inputs and write the state rarely.

state_t = exp(dt_t * A) * state_{t-1} + dt_t * x_t (x) B_t
out_t = (state_t . C_t + D * x_t) * silu(z_t)
Source: Dao & Gu 2024 (arXiv 2405.21060) for the recurrence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    INDEX_DTYPES,
    expect_dtype,
    expect_flags,
    expect_in_place,
    expect_limits,
    expect_ndim,
    expect_rows,
    expect_same_device,
    expect_shape,
    expect_tensors,
    fail,
    on_host,
)
from tvkernels.core.library import kernel_op
from tvkernels.replay_state_update.reference import replay_flush_ref, replay_state_update_ref

__all__ = ["replay_flush", "replay_state_update"]

OP, FLUSH = "replay_state_update", "replay_flush"


@torch.no_grad()
def replay_state_update(
    state: Tensor,
    pending_x: Tensor,
    pending_dt: Tensor,
    pending_B: Tensor,
    written: Tensor,
    cache_seqlens: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """The next tokens of each sequence; keeps their inputs and writes the state now and then.

        state_t = exp(dt_t * A) * state_{t-1} + dt_t * x_t (x) B_t
        out_t = (state_t . C_t + D * x_t) * silu(z_t)

    with dt = clamp(softplus(dt + dt_bias), dt_limit), softplus only if dt_softplus. `state` is the
    state behind written[r] tokens of row r; the tokens from there to cache_seqlens are pending, and
    every call replays them. Where they and the new tokens are more than `capacity`, the call first
    writes the pending ones into `state`. So token by token the state is read at every step and
    written at one of `capacity`: with 80 x 128 states in float32 and a capacity of 8, 0.59 of the
    bytes of `selective_state_update`.

    A call's own tokens are pending after it. To take the last ones back, as speculative decoding
    does with tokens that were not accepted, pass a smaller cache_seqlens to the next call: the
    state and all later outputs are as if only the others had been fed.

    Args:
        state: (batch, nheads, dim, dstate), float32 or 16 bit, any strides that do not overlap, as
            every tensor that is written in place. The first sizes of `state`, the pending tensors
            and `written` are the same, and free with state_batch_indices.
        pending_x: (batch, 2 * capacity, nheads, dim), dtype of x. Token t lies in slot
            t % (2 * capacity). What the pending tensors hold at first is not read.
        pending_dt: (batch, 2 * capacity, nheads, 2), the step size and the decay exp(dt * A); in
            float32 (float64 if x or state is) they are kept exactly.
        pending_B: (batch, 2 * capacity, ngroups, dstate), dtype of B.
        written: (batch, nheads) int32, the tokens that `state` contains; the same for each head.
        cache_seqlens: (batch,) int32 or int64 below 2^31, tokens fed before these, from written to
            written + capacity; the caller counts on.
        x: (batch, seqlen, nheads, dim) or, one token, (batch, nheads, dim), seqlen at most
            capacity.
        dt: (batch, seqlen, nheads) or (batch, nheads), before bias and softplus.
        A: (nheads,), negative for a decay.
        B: (batch, seqlen, ngroups, dstate) or (batch, ngroups, dstate); head h uses group
            h // (nheads / ngroups).
        C: shape of B.
        D: (nheads,), the skip weight, or None.
        z: shape of x, the gate, or None.
        dt_bias: (nheads,) or None.
        dt_softplus: whether dt goes through softplus.
        dt_limit: (least, greatest) step after softplus.
        state_batch_indices: (batch,) int32 or int64, the row of each entry, each row named at most
            once; a negative entry is padding: its output is 0 and nothing of it is written.

    Returns:
        out: shape and dtype of x.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or (on the CPU, where it can be read)
            cache_seqlens is not within the pending tokens.

    Numerics: computed in float32 (float64 if x or state is), each token by the arithmetic of a step
    of its own. Where state and pending_dt have that dtype, outputs and states do not depend on when
    the state was written. A 16 bit state is rounded once per write, not once per token. For
    inference: no gradient flows.
    """
    expect_tensors(OP, x=x, dt=dt, A=A, B=B, C=C)
    if z is not None:
        expect_tensors(OP, z=z)
    expect_flags(OP, dt_softplus=dt_softplus)
    expect_limits(OP, "dt_limit", dt_limit)
    shape = x.shape
    if x.ndim == 3:
        x, dt, B, C = (t.unsqueeze(1) for t in (x, dt, B, C))
        z = z if z is None else z.unsqueeze(1)
    held = (pending_x, pending_dt, pending_B)
    expect_ndim(OP, "x", x, "(batch, nheads, dim) or (batch, seqlen, nheads, dim)", 4)
    _check_held(OP, state, *held, written, cache_seqlens, state_batch_indices)
    _check_tokens(state, pending_x, pending_B, cache_seqlens, x, dt, B, C, z)
    for name, t in {"A": A, "D": D, "dt_bias": dt_bias}.items():
        if t is not None:
            expect_shape(OP, name, t, "(nheads,)", (state.shape[1],))
            expect_dtype(OP, name, t)
    expect_same_device(OP, state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    given = (state, *held, written, cache_seqlens, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    if backend_for(x, OP) == "reference":
        out = replay_state_update_ref(*given, dt_limit, state_batch_indices)
    else:
        out = _update(*given, *dt_limit, state_batch_indices)
    return out.view(shape)


@torch.no_grad()
def replay_flush(
    state: Tensor,
    pending_x: Tensor,
    pending_dt: Tensor,
    pending_B: Tensor,
    written: Tensor,
    cache_seqlens: Tensor,
    state_batch_indices: Tensor | None = None,
) -> None:
    """Write the pending tokens of `replay_state_update` into `state`; none is pending afterwards.

    Needed before anything else reads or replaces the state: a prefill, a copy, a file.

    Args:
        state, pending_x, pending_dt, pending_B, written, cache_seqlens, state_batch_indices: as for
            `replay_state_update`. Writes `state` and `written`, where a token is pending.

    Raises:
        ValueError: as `replay_state_update`.

    Numerics: the state has the bits that steps of one token would have given it.
    """
    given = (state, pending_x, pending_dt, pending_B, written, cache_seqlens, state_batch_indices)
    _check_held(FLUSH, *given)
    reference = backend_for(state, OP) == "reference"
    (replay_flush_ref if reference else _flush)(*given)


def _check_held(
    op: str,
    state: Tensor,
    pending_x: Tensor,
    pending_dt: Tensor,
    pending_B: Tensor,
    written: Tensor,
    cache_seqlens: Tensor,
    indices: Tensor | None,
) -> None:
    """What is kept between calls, and which of it is pending."""
    expect_ndim(op, "state", state, "(batch, nheads, dim, dstate)", 4)
    expect_dtype(op, "state", state)
    expect_ndim(op, "cache_seqlens", cache_seqlens, "(batch,)", 1)
    rows, nheads, dim, dstate = state.shape
    batch = cache_seqlens.shape[0]
    if indices is None and rows != batch:
        rule, remedy = f"have batch = {batch} rows", "name the rows in state_batch_indices"
        fail(op, "state", rule, rows, remedy)
    layout = "(batch, 2 * capacity, nheads, dim)"
    expect_shape(op, "pending_x", pending_x, layout, (rows, None, nheads, dim))
    expect_dtype(op, "pending_x", pending_x)
    slots = pending_x.shape[1]
    if slots < 2 or slots % 2:
        fail(op, "pending_x", "have 2 * capacity slots, capacity at least 1", slots)
    layout = "(batch, 2 * capacity, nheads, 2)"
    expect_shape(op, "pending_dt", pending_dt, layout, (rows, slots, nheads, 2))
    expect_dtype(op, "pending_dt", pending_dt)
    layout = "(batch, 2 * capacity, ngroups, dstate)"
    expect_shape(op, "pending_B", pending_B, layout, (rows, slots, None, dstate))
    expect_dtype(op, "pending_B", pending_B)
    ngroups = pending_B.shape[2]
    if ngroups == 0 or nheads % ngroups:
        fail(op, "pending_B", f"have ngroups that divide nheads = {nheads}", ngroups)
    expect_shape(op, "written", written, "(batch, nheads)", (rows, nheads))
    held = {"state": state, "pending_x": pending_x, "pending_dt": pending_dt}
    held |= {"pending_B": pending_B, "written": written}
    for name, t in held.items():
        expect_in_place(op, name, t)
    expect_dtype(op, "written", written, (torch.int32,))
    expect_dtype(op, "cache_seqlens", cache_seqlens, INDEX_DTYPES)
    expect_same_device(op, **held, cache_seqlens=cache_seqlens, state_batch_indices=indices)
    if indices is not None:
        expect_rows(op, "state_batch_indices", indices, batch, rows)
    _check_pending(op, written, cache_seqlens, indices, slots // 2)


def _check_pending(
    op: str, written: Tensor, cache_seqlens: Tensor, indices: Tensor | None, capacity: int
) -> None:
    """At most `capacity` tokens are pending. Values that lie on a device are not read."""
    if not on_host(written) or not written.numel():
        return
    lengths = cache_seqlens.tolist()
    rows = range(len(lengths)) if indices is None else indices.tolist()
    for row, length in zip(rows, lengths):
        least = written[row].tolist() if row >= 0 else [length]
        if min(least) != max(least) or not 0 <= length - least[0] <= capacity:
            rule = f"be from written to written + capacity = {capacity}, alike for all heads"
            got = f"{length} where written is from {min(least)} to {max(least)}"
            fail(op, "cache_seqlens", rule, got)


def _check_tokens(
    state: Tensor,
    pending_x: Tensor,
    pending_B: Tensor,
    cache_seqlens: Tensor,
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
) -> None:
    """The new tokens, which have their seqlen dimension."""
    nheads, dim, dstate = state.shape[1:]
    batch, seqlen, capacity = cache_seqlens.shape[0], x.shape[1], pending_x.shape[1] // 2
    layout = "(batch, seqlen, nheads, dim)"
    expect_shape(OP, "x", x, layout, (batch, None, nheads, dim))
    expect_dtype(OP, "x", x, (pending_x.dtype,))
    if not 1 <= seqlen <= capacity:
        fail(OP, "x", f"have a seqlen from 1 to capacity = {capacity}", seqlen)
    expect_shape(OP, "dt", dt, "(batch, seqlen, nheads)", (batch, seqlen, nheads))
    sizes = (batch, seqlen, pending_B.shape[2], dstate)
    expect_shape(OP, "B", B, "(batch, seqlen, ngroups, dstate)", sizes)
    expect_dtype(OP, "B", B, (pending_B.dtype,))
    expect_shape(OP, "C", C, "the shape of B", B.shape)
    if z is not None:
        expect_shape(OP, "z", z, layout, x.shape)
    for name, t in {"dt": dt, "C": C, "z": z}.items():
        if t is not None:
            expect_dtype(OP, name, t)


def _fake_update(*given: Tensor) -> Tensor:
    x = given[6]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@kernel_op(
    "tvkernels::replay_state_update",
    fake=_fake_update,
    mutates_args=("state", "pending_x", "pending_dt", "pending_B", "written"),
)
def _update(
    state: Tensor,
    pending_x: Tensor,
    pending_dt: Tensor,
    pending_B: Tensor,
    written: Tensor,
    cache_seqlens: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_least: float,
    dt_greatest: float,
    state_batch_indices: Tensor | None,
) -> Tensor:
    """out; x has its seqlen dimension."""
    from tvkernels.replay_state_update.kernel import replay

    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    replay(
        state, pending_x, pending_dt, pending_B, written, cache_seqlens, x, dt, A, B, C, D, z,
        dt_bias, dt_softplus, dt_least, dt_greatest, state_batch_indices, out,
    )  # fmt: skip
    return out


def _fake_flush(*given: Tensor) -> None:
    return None


@kernel_op("tvkernels::replay_flush", fake=_fake_flush, mutates_args=("state", "written"))
def _flush(
    state: Tensor,
    pending_x: Tensor,
    pending_dt: Tensor,
    pending_B: Tensor,
    written: Tensor,
    cache_seqlens: Tensor,
    state_batch_indices: Tensor | None,
) -> None:
    from tvkernels.replay_state_update.kernel import replay

    held = (pending_x, pending_dt, pending_B)
    new = (None,) * 8
    replay(state, *held, written, cache_seqlens, *new, False, 0.0, 0.0, state_batch_indices, None)
