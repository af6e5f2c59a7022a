"""One token through a Mamba-2 mixer, between its input projection and its norm, in place.

x, B, C = silu(conv(x, B, C));  dt = softplus(dt + dt_bias);  A = -exp(A_log)
state = exp(dt * A) * state + dt * x (x) B;  y = (state . C + D * x) * silu(z)
Source: mamba-ssm 2.3.2 (Mamba2.step); Dao & Gu 2024 (arXiv 2405.21060).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    INDEX_DTYPES,
    expect_choice,
    expect_dtype,
    expect_in_place,
    expect_limits,
    expect_ndim,
    expect_rows,
    expect_same_device,
    expect_shape,
    expect_tensors,
    fail,
)
from tvkernels.core.library import kernel_op
from tvkernels.decode_step.reference import mamba2_decode_step_ref

__all__ = ["mamba2_decode_step"]

OP = "mamba2_decode_step"


@torch.no_grad()
def mamba2_decode_step(
    zxbcdt: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    cache_seqlens: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str | None = "silu",
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """The next token of each sequence; writes it into conv_state and ssm_state.

    `causal_conv1d_update` with cache_seqlens, then `selective_state_update` with z, in one launch:

        x, B, C = act(conv(x, B, C));  dt = clamp(softplus(dt + dt_bias), dt_limit)
        A = -exp(A_log);  state = exp(dt * A) * state + dt * x (x) B
        y = (state . C + D * x) * silu(z)

    The gate comes before a norm that may follow (norm_before_gate=False): call `rmsnorm_fn` on y
    without z.

    Args:
        zxbcdt: (batch, 2 * dim + 2 * ngroups * d_state + nheads), the input projection's columns
            [z | x, B, C | dt] with dim = nheads * headdim; any strides.
        conv_state: (batch, dim + 2 * ngroups * d_state, state_len), dtype of zxbcdt, any strides
            that do not overlap, fastest where the channels are contiguous. A circular buffer: this
            token goes to slot cache_seqlens % state_len, the one before it is in the slot before.
            state_len is at least width: the slot that is written holds no input that is still read,
            by whichever part of the launch. Its first size is free with state_batch_indices.
        ssm_state: (batch, nheads, headdim, d_state), float32 or 16 bit, any strides that do not
            overlap. Its first size is free with state_batch_indices.
        cache_seqlens: (batch,) int32 or int64, tokens that conv_state has taken in before this one,
            also modulo state_len; the caller counts on.
        conv1d_weight: (dim + 2 * ngroups * d_state, width), any float dtype.
        conv1d_bias: (dim + 2 * ngroups * d_state,) or None.
        dt_bias: (nheads,) or None.
        A_log: (nheads,).
        D: (nheads,), the skip weight, or None.
        dt_limit: (least, greatest) step after softplus.
        activation: "silu", "swish" (the same) or None, after the convolution.
        state_batch_indices: (batch,) int32 or int64, the row of both states of each entry, each row
            named at most once; a negative entry is padding: its output is 0, no state is written.

    Returns:
        y (batch, dim), dtype of zxbcdt.

    Raises:
        ValueError: shapes, dtypes, devices or the activation do not fit.

    Numerics: computed in float32 (float64 if zxbcdt or ssm_state is) with one rounding of y, read
    from the new state before that is rounded to its dtype. For inference: no gradient flows.
    Source: mamba-ssm 2.3.2, Mamba2.step.
    """
    _check_states(zxbcdt, conv_state, ssm_state, cache_seqlens, state_batch_indices)
    _check_parameters(zxbcdt, conv_state, ssm_state, conv1d_weight, conv1d_bias, activation)
    nheads = ssm_state.shape[1]
    expect_tensors(OP, A_log=A_log)
    for name, t in {"dt_bias": dt_bias, "A_log": A_log, "D": D}.items():
        if t is not None:
            expect_shape(OP, name, t, "(nheads,)", (nheads,))
            expect_dtype(OP, name, t)
    expect_same_device(OP, zxbcdt=zxbcdt, dt_bias=dt_bias, A_log=A_log, D=D)
    expect_limits(OP, "dt_limit", dt_limit, "be (least, greatest) with 0 <= least <= greatest", 0)
    if backend_for(zxbcdt, "decode_step") == "reference":
        return mamba2_decode_step_ref(
            zxbcdt, conv_state, ssm_state, cache_seqlens, conv1d_weight, conv1d_bias,
            dt_bias, A_log, D, dt_limit, activation, state_batch_indices,
        )  # fmt: skip
    return _step(
        zxbcdt, conv_state, ssm_state, cache_seqlens, conv1d_weight, conv1d_bias,
        dt_bias, A_log, D, *dt_limit, activation is not None, state_batch_indices,
    )  # fmt: skip


def _check_states(
    zxbcdt: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    cache_seqlens: Tensor,
    indices: Tensor | None,
) -> None:
    expect_ndim(OP, "zxbcdt", zxbcdt, "(batch, columns)", 2)
    expect_dtype(OP, "zxbcdt", zxbcdt)
    batch = len(zxbcdt)
    rows = batch if indices is None else None
    layout = "(batch, nheads, headdim, d_state)"
    expect_shape(OP, "ssm_state", ssm_state, layout, (rows, None, None, None))
    expect_dtype(OP, "ssm_state", ssm_state)
    layout = "(batch, dim + 2 * ngroups * d_state, state_len)"
    expect_shape(OP, "conv_state", conv_state, layout, (rows, None, None))
    expect_dtype(OP, "conv_state", conv_state, (zxbcdt.dtype,))
    for name, state in {"conv_state": conv_state, "ssm_state": ssm_state}.items():
        expect_in_place(OP, name, state)
    expect_shape(OP, "cache_seqlens", cache_seqlens, "(batch,)", (batch,))
    expect_dtype(OP, "cache_seqlens", cache_seqlens, INDEX_DTYPES)
    if indices is not None:
        rows = min(len(conv_state), len(ssm_state))
        expect_rows(OP, "state_batch_indices", indices, batch, rows)
    expect_same_device(
        OP, zxbcdt=zxbcdt, conv_state=conv_state, ssm_state=ssm_state,
        cache_seqlens=cache_seqlens, state_batch_indices=indices,
    )  # fmt: skip


def _check_parameters(
    zxbcdt: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
) -> None:
    """The sizes of zxbcdt, of the states and of the convolution fit each other."""
    nheads, headdim, d_state = ssm_state.shape[1:]
    dim, channels = nheads * headdim, conv_state.shape[1]
    ngroups, odd = divmod(channels - dim, 2 * d_state) if d_state else (0, 0)
    if ngroups < 1 or odd or nheads % ngroups:
        rule = f"have {dim} + 2 * ngroups * {d_state} channels, ngroups a divisor of {nheads}"
        fail(OP, "conv_state", rule, channels)
    layout = "(batch, 2 * dim + 2 * ngroups * d_state + nheads)"
    expect_shape(OP, "zxbcdt", zxbcdt, layout, (len(zxbcdt), dim + channels + nheads))
    layout = "(dim + 2 * ngroups * d_state, width)"
    expect_shape(OP, "conv1d_weight", weight, layout, (channels, None))
    expect_dtype(OP, "conv1d_weight", weight)
    if not 1 <= weight.shape[1] <= conv_state.shape[2]:
        fail(
            OP,
            "conv_state",
            f"have state_len of at least width = {weight.shape[1]}, width at least 1 "
            "(the slot that is written must hold no input that is still read)",
            conv_state.shape[2],
        )
    if bias is not None:
        expect_shape(OP, "conv1d_bias", bias, "(dim + 2 * ngroups * d_state,)", (channels,))
        expect_dtype(OP, "conv1d_bias", bias)
    expect_same_device(OP, zxbcdt=zxbcdt, conv1d_weight=weight, conv1d_bias=bias)
    expect_choice(OP, "activation", activation, (None, "silu", "swish"))


def _fake_step(zxbcdt: Tensor, conv_state: Tensor, ssm_state: Tensor, *_: Any) -> Tensor:
    # not len(), which makes the size a constant of the compiled code
    return zxbcdt.new_empty(zxbcdt.shape[0], ssm_state.shape[1] * ssm_state.shape[2])


@kernel_op(
    "tvkernels::mamba2_decode_step", fake=_fake_step, mutates_args=("conv_state", "ssm_state")
)
def _step(
    zxbcdt: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    cache_seqlens: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor | None,
    dt_least: float,
    dt_greatest: float,
    silu: bool,
    state_batch_indices: Tensor | None,
) -> Tensor:
    from tvkernels.decode_step.kernel import decode_step

    return decode_step(
        zxbcdt, conv_state, ssm_state, cache_seqlens, conv1d_weight, conv1d_bias,
        dt_bias, A_log, D, dt_least, dt_greatest, silu, state_batch_indices,
    )  # fmt: skip
