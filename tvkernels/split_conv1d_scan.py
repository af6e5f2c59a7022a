"""The inside of a Mamba-2 mixer: causal convolution, scan, gated norm, output projection.

A composition of public ops, without a kernel of its own.
Source: mamba-ssm 2.3.2 (mamba_split_conv1d_scan_combined).
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tvkernels.causal_conv1d import causal_conv1d_fn
from tvkernels.core.checks import (
    expect_dtype,
    expect_flags,
    expect_int,
    expect_limits,
    expect_ndim,
    expect_number,
    expect_same_device,
    expect_shape,
    expect_tensors,
    fail,
)
from tvkernels.rmsnorm import rmsnorm_fn
from tvkernels.ssd import mamba_chunk_scan_combined

__all__ = ["mamba_split_conv1d_scan_combined"]

_OP = "mamba_split_conv1d_scan_combined"


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
    initial_conv_states: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Everything of a Mamba-2 mixer between its input projection and its output.

        zxbcdt = [gate, up | z | x, B, C | dt], with dim = nheads * headdim columns for z and for x
        x, B, C = act(conv1d(x, B, C));    y = scan(x, softplus(dt + dt_bias), A, B, C, D)
        y = rmsnorm(y, z)  or, without rmsnorm_weight,  y * silu(z)
        out = [silu(gate) * up, y] @ outproj_weight^T + outproj_bias

    Args:
        zxbcdt: (batch, seqlen, 2 * d_mlp + 2 * dim + 2 * ngroups * d_state + nheads); d_state
            follows from conv1d_weight, d_mlp, which may be 0, from what is left.
        conv1d_weight: (dim + 2 * ngroups * d_state, width).
        conv1d_bias: (dim + 2 * ngroups * d_state,) or None.
        dt_bias, A: (nheads,).
        D: (nheads, headdim), or (nheads,) and then headdim must be given.
        chunk_size: a positive int, a hint.
        initial_states: (batch, nheads, headdim, d_state), the scan's state before token 0.
        seq_idx: (batch, seqlen) int32 or int64: convolution and state restart where it changes.
        dt_limit: (least, greatest) step after softplus.
        return_final_states: also return the state after the last token.
        activation: "silu", "swish" (the same) or None, after the convolution.
        rmsnorm_weight: (dim,), norm over groups of dim / ngroups; None: no norm.
        rmsnorm_eps, norm_before_gate: as in `rmsnorm_fn`.
        outproj_weight: (d_out, d_mlp + dim) or None.
        outproj_bias: (d_out,) or None.
        headdim: only needed with D (nheads,).
        ngroups: groups of B and C, a divisor of nheads.
        state_dtype: as in `mamba_chunk_scan_combined`.
        initial_conv_states: (batch, dim + 2 * ngroups * d_state, width - 1), dtype of zxbcdt: the
            columns x, B, C before token 0, None for zeros. Of a prompt taken in parts they are
            those of the last width - 1 tokens of the part before. Not in mamba-ssm.

    Returns:
        out (batch, seqlen, d_out), or (batch, seqlen, d_mlp + dim) without outproj_weight, dtype of
        zxbcdt; with return_final_states (out, final_states), final_states (batch, nheads, headdim,
        d_state) as of `mamba_chunk_scan_combined`.

    Raises:
        ValueError: shapes, dtypes, devices or the combination of arguments do not fit.

    Numerics: each op computes in float32 and rounds its result to the dtype of zxbcdt; with the
    norm, y is rounded before it. Parameters may have any float dtype; the output projection runs
    in the dtype of zxbcdt, or in torch.autocast's, as a Linear does. First order gradients.
    Source: mamba-ssm 2.3.2, mamba_split_conv1d_scan_combined.
    """
    tensors = {
        "zxbcdt": zxbcdt, "conv1d_weight": conv1d_weight, "A": A, "D": D,
        **_given(conv1d_bias=conv1d_bias, dt_bias=dt_bias, initial_states=initial_states),
        **_given(seq_idx=seq_idx, rmsnorm_weight=rmsnorm_weight, outproj_weight=outproj_weight),
        **_given(outproj_bias=outproj_bias),
    }  # fmt: skip
    expect_tensors(_OP, **tensors)
    for name in ("zxbcdt", *_given(outproj_weight=outproj_weight)):
        expect_dtype(_OP, name, tensors[name])
    expect_same_device(_OP, **tensors)
    expect_limits(_OP, "dt_limit", dt_limit)
    # without a norm transformers passes None
    if rmsnorm_weight is not None:
        expect_number(_OP, "rmsnorm_eps", rmsnorm_eps, "be at least 0", 0)
    expect_flags(_OP, return_final_states=return_final_states, norm_before_gate=norm_before_gate)
    nheads, headdim = _heads(D, headdim)
    dim = nheads * headdim
    d_bc, d_mlp = _widths(zxbcdt, conv1d_weight, nheads, dim, ngroups)
    _check_conv_states(zxbcdt, conv1d_weight, initial_conv_states)
    _check_output(zxbcdt, rmsnorm_weight, outproj_weight, outproj_bias, dim, d_mlp)
    gate_up, z, xBC, dt = zxbcdt.split([2 * d_mlp, dim, dim + 2 * d_bc, nheads], dim=-1)
    conv = causal_conv1d_fn(
        xBC.transpose(1, 2), conv1d_weight, conv1d_bias, seq_idx, initial_conv_states,
        activation=activation,
    )  # fmt: skip
    x, B, C = cast(Tensor, conv).transpose(1, 2).split([dim, d_bc, d_bc], dim=-1)
    y, *states = mamba_chunk_scan_combined(
        x.unflatten(-1, (nheads, headdim)),
        dt,
        A,
        B.unflatten(-1, (ngroups, d_bc // ngroups)),
        C.unflatten(-1, (ngroups, d_bc // ngroups)),
        chunk_size,
        D=D,
        z=z.unflatten(-1, (nheads, headdim)) if rmsnorm_weight is None else None,
        dt_bias=dt_bias,
        initial_states=initial_states,
        seq_idx=seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
        state_dtype=state_dtype,
    )
    out = y.flatten(2)
    if rmsnorm_weight is not None:
        out = rmsnorm_fn(
            out, rmsnorm_weight, None, z, rmsnorm_eps, dim // ngroups, norm_before_gate
        )
    if d_mlp:
        gate, up = gate_up.to(torch.promote_types(out.dtype, torch.float32)).chunk(2, dim=-1)
        out = torch.cat([(F.silu(gate) * up).to(out.dtype), out], dim=-1)
    if outproj_weight is not None:
        bias = None if outproj_bias is None else outproj_bias.to(out.dtype)
        out = F.linear(out, outproj_weight.to(out.dtype), bias)
    return (out, states[0]) if return_final_states else out


def _given(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if x is not None}


def _heads(D: Tensor, headdim: int | None) -> tuple[int, int]:
    """(nheads, headdim), from D where it has both."""
    expect_ndim(_OP, "D", D, "(nheads,) or (nheads, headdim)", 1, 2)
    if headdim is not None:
        expect_int(_OP, "headdim", headdim, "be an int of at least 1", 1)
    if D.ndim == 2:
        return D.shape[0], D.shape[1]
    if headdim is None:
        fail(_OP, "headdim", "be given with D (nheads,)", None)
    return D.shape[0], headdim


def _widths(
    zxbcdt: Tensor, conv1d_weight: Tensor, nheads: int, dim: int, ngroups: int
) -> tuple[int, int]:
    """(ngroups * d_state, d_mlp), which the widths of conv1d_weight and zxbcdt determine."""
    expect_ndim(_OP, "zxbcdt", zxbcdt, "(batch, seqlen, columns)", 3)
    expect_ndim(_OP, "conv1d_weight", conv1d_weight, "(dim + 2 * ngroups * d_state, width)", 2)
    rule = f"divide nheads = {nheads}"
    expect_int(_OP, "ngroups", ngroups, rule, 1)
    if nheads % ngroups:
        fail(_OP, "ngroups", rule, ngroups)
    d_bc, odd = divmod(conv1d_weight.shape[0] - dim, 2)
    if d_bc < ngroups or d_bc % ngroups or odd:
        rule = f"have {dim} + 2 * {ngroups} * d_state rows (dim + 2 * ngroups * d_state)"
        fail(_OP, "conv1d_weight", rule, f"shape {tuple(conv1d_weight.shape)}")
    least = 2 * dim + 2 * d_bc + nheads
    d_mlp, odd = divmod(zxbcdt.shape[2] - least, 2)
    if d_mlp < 0 or odd:
        rule = f"have {least} columns, or an even number more (the MLP's gate and up parts)"
        fail(_OP, "zxbcdt", rule, f"shape {tuple(zxbcdt.shape)}")
    return d_bc, d_mlp


def _check_conv_states(
    zxbcdt: Tensor, conv1d_weight: Tensor, initial_conv_states: Tensor | None
) -> None:
    if initial_conv_states is None:
        return
    channels, width = conv1d_weight.shape
    layout = "(batch, dim + 2 * ngroups * d_state, width - 1)"
    sizes = (zxbcdt.shape[0], channels, width - 1)
    expect_shape(_OP, "initial_conv_states", initial_conv_states, layout, sizes)
    expect_dtype(_OP, "initial_conv_states", initial_conv_states, (zxbcdt.dtype,))
    expect_same_device(_OP, zxbcdt=zxbcdt, initial_conv_states=initial_conv_states)


def _check_output(
    zxbcdt: Tensor,
    rmsnorm_weight: Tensor | None,
    outproj_weight: Tensor | None,
    outproj_bias: Tensor | None,
    dim: int,
    d_mlp: int,
) -> None:
    if rmsnorm_weight is not None:
        expect_shape(_OP, "rmsnorm_weight", rmsnorm_weight, "(dim,)", (dim,))
    if outproj_weight is not None:
        layout = "(d_out, d_mlp + dim)"
        expect_shape(_OP, "outproj_weight", outproj_weight, layout, (None, d_mlp + dim))
    if outproj_bias is not None:
        if outproj_weight is None:
            fail(_OP, "outproj_bias", "be None without outproj_weight", "a tensor")
        expect_shape(_OP, "outproj_bias", outproj_bias, "(d_out,)", (outproj_weight.shape[0],))
        expect_dtype(_OP, "outproj_bias", outproj_bias)
