"""Root-mean-square and layer norm: gated by silu(z) and grouped, or with the residual's sum.

y = norm(x) * weight + bias, where norm(x) = x / sqrt(mean(x^2) + eps) over each group.
Source: mamba-ssm 2.3.2 (layernorm_gated); Zhang & Sennrich 2019 (arXiv 1910.07467).
"""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    expect_dtype,
    expect_flags,
    expect_int,
    expect_number,
    expect_same_device,
    expect_shape,
    fail,
)
from tvkernels.core.library import distinct, kernel_op
from tvkernels.core.plain import first_order
from tvkernels.rmsnorm.reference import layernorm_fn_ref, rms_norm_ref, rmsnorm_fn_ref

__all__ = ["layernorm_fn", "rms_norm", "rmsnorm_fn"]


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """Root-mean-square norm over groups of channels, gated by silu(z).

        norm_before_gate: out = (x / rms(x) * weight + bias) * silu(z)
        otherwise:        out = g / rms(g) * weight + bias, with g = x * silu(z)

    Args:
        x: (..., dim), any strides.
        weight: (dim,), any float dtype.
        bias: (dim,) or None.
        z: the gate, shape of x, or None for no gate.
        eps: added to the mean square.
        group_size: channels per group, a divisor of dim; None is one group of dim.
        norm_before_gate: whether the gate follows the norm.

    Returns:
        (..., dim), contiguous, dtype of x.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Numerics: everything, the weight included, in float32 (float64 for float64 x), then one
    rounding to the dtype of x. First order gradients only.
    Source: mamba-ssm 2.3.2, rmsnorm_fn.
    """
    _check("rmsnorm_fn", x, weight, bias, z, eps, group_size)
    expect_flags("rmsnorm_fn", norm_before_gate=norm_before_gate)
    if backend_for(x, "rmsnorm") == "reference":
        return rmsnorm_fn_ref(x, weight, bias, z, eps, group_size, norm_before_gate)
    form = _Form(eps, group_size or x.shape[-1], norm_before_gate, True)
    return _GatedNorm.apply(*distinct(x, weight, bias, z), form)


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Layer norm over groups of channels, gated by silu(z): `rmsnorm_fn` of x minus its mean.

    norm(x) = (x - mean(x)) / sqrt(var(x) + eps) over each group, var without Bessel's correction.

    Args:
        x, weight, bias, z, eps, group_size, norm_before_gate: as for `rmsnorm_fn`.
        is_rms_norm: do not subtract the mean; the call is then `rmsnorm_fn`.

    Returns:
        (..., dim), contiguous, dtype of x.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Numerics: as for `rmsnorm_fn`.
    Source: mamba-ssm 2.3.2, layernorm_fn.
    """
    _check("layernorm_fn", x, weight, bias, z, eps, group_size)
    expect_flags("layernorm_fn", norm_before_gate=norm_before_gate, is_rms_norm=is_rms_norm)
    if backend_for(x, "rmsnorm") == "reference":
        return layernorm_fn_ref(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm)
    form = _Form(eps, group_size or x.shape[-1], norm_before_gate, is_rms_norm)
    return _GatedNorm.apply(*distinct(x, weight, bias, z), form)


@overload
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
@overload
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square norm of x, or of the residual stream after x is added to it.

    out = s / sqrt(mean(s^2) + eps) * weight, with s = x, or s = x + residual.

    Args:
        x: (..., dim), any strides.
        weight: (dim,), any float dtype.
        eps: added to the mean square.
        residual: shape and dtype of x, or None.

    Returns:
        out, contiguous, dtype of x; with a residual (out, new_residual), where
        new_residual = x + residual.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Numerics: new_residual is rounded to the dtype of x, because the residual stream is kept in
    that dtype, and the norm sees the rounded sum. The norm itself, the weight included, is
    computed in float32 and rounded once. First order gradients only.
    Source: Zhang & Sennrich 2019 (arXiv 1910.07467).
    """
    _check("rms_norm", x, weight, None, None, eps, None)
    if residual is not None:
        expect_shape("rms_norm", "residual", residual, "the shape of x", x.shape)
        expect_dtype("rms_norm", "residual", residual, (x.dtype,))
        expect_same_device("rms_norm", x=x, residual=residual)
    if backend_for(x, "rmsnorm") == "reference":
        return rms_norm_ref(x, weight, eps, residual)
    if residual is None:
        return _GatedNorm.apply(x, weight, None, None, _Form(eps, x.shape[-1], True, True))
    return _ResidualNorm.apply(*distinct(x, weight, residual), eps)


def _check(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int | None,
) -> None:
    expect_dtype(op, "x", x)
    if x.ndim == 0:
        fail(op, "x", "be (..., dim)", "a scalar")
    dim = x.shape[-1]
    expect_shape(op, "weight", weight, "(dim,)", (dim,))
    expect_dtype(op, "weight", weight)
    if bias is not None:
        expect_shape(op, "bias", bias, "(dim,)", (dim,))
        expect_dtype(op, "bias", bias)
    if z is not None:
        expect_shape(op, "z", z, "the shape of x", x.shape)
        expect_dtype(op, "z", z)
    expect_same_device(op, x=x, weight=weight, bias=bias, z=z)
    expect_number(op, "eps", eps, "be at least 0", 0)
    if group_size is not None:
        rule = f"divide dim = {dim}"
        expect_int(op, "group_size", group_size, rule, 1)
        if dim % group_size:
            fail(op, "group_size", rule, group_size)


class _Form(NamedTuple):
    eps: float
    group_size: int
    norm_before_gate: bool
    is_rms_norm: bool


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None, form: _Form
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, z)
        ctx.form = form
        return _gated_fwd(x, weight, bias, z, *form)

    @staticmethod
    @first_order("rmsnorm_fn and layernorm_fn")
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, z = ctx.saved_tensors
        dx, dweight, dbias, dz = _gated_bwd(dout, x, weight, bias, z, *ctx.form)
        return dx, dweight, None if bias is None else dbias, None if z is None else dz, None


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, residual: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        out, total = _residual_fwd(x, weight, residual, eps)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return out, total

    @staticmethod
    @first_order("rms_norm")
    def backward(ctx: Any, dout: Tensor, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        dx, dweight = _residual_bwd(dout, dtotal, total, weight, ctx.eps)
        return dx, dweight, dx, None


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_gated_fwd(x: Tensor, *_: Any) -> Tensor:
    return _like(x)


@kernel_op("tvkernels::gated_norm_fwd", fake=_fake_gated_fwd)
def _gated_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    is_rms_norm: bool,
) -> Tensor:
    from tvkernels.rmsnorm.kernel import norm_forward

    form = (eps, group_size, norm_before_gate, is_rms_norm)
    return norm_forward(x, weight, bias, z, None, *form)[0]


def _fake_gated_bwd(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(0) if bias is None else _like(bias)
    return _like(x), _like(weight), dbias, x.new_empty(0) if z is None else _like(z)


@kernel_op("tvkernels::gated_norm_bwd", fake=_fake_gated_bwd)
def _gated_bwd(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    is_rms_norm: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, dbias, dz; the last two without elements where there is no bias, no z."""
    from tvkernels.rmsnorm.kernel import norm_backward

    form = (eps, group_size, norm_before_gate, is_rms_norm)
    dx, dweight, dbias, dz = norm_backward(dout, x, weight, bias, z, None, *form)
    dbias = weight.new_empty(0) if dbias is None else dbias
    return dx, dweight, dbias, x.new_empty(0) if dz is None else dz


def _fake_residual_fwd(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(x), _like(x)


@kernel_op("tvkernels::residual_norm_fwd", fake=_fake_residual_fwd)
def _residual_fwd(x: Tensor, weight: Tensor, residual: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """out and x + residual."""
    from tvkernels.rmsnorm.kernel import norm_forward

    return norm_forward(x, weight, None, None, residual, eps, x.shape[-1], True, True)


def _fake_residual_bwd(
    dout: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _like(total), _like(weight)


@kernel_op("tvkernels::residual_norm_bwd", fake=_fake_residual_bwd)
def _residual_bwd(
    dout: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradient of x, which is also the residual's, and dweight."""
    from tvkernels.rmsnorm.kernel import norm_backward

    form = (eps, total.shape[-1], True, True)
    dx, dweight, _, _ = norm_backward(dout, total, weight, None, None, dtotal, *form)
    return dx, dweight
