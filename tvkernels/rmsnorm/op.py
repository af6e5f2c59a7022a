"""Root-mean-square and layer norm: gated by silu(z) and grouped, or with the residual's sum.

y = norm(x) * weight + bias, where norm(x) = x / sqrt(mean(x^2) + eps) over each group.
Source: mamba-ssm 2.3.2 (layernorm_gated); Zhang & Sennrich 2019 (arXiv 1910.07467).
"""

from __future__ import annotations

from typing import overload

from torch import Tensor

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import expect_dtype, expect_same_device, expect_shape, fail
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
    backend_for(x, "rmsnorm")
    return rmsnorm_fn_ref(x, weight, bias, z, eps, group_size, norm_before_gate)


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
    """Layer norm over groups of channels, gated by silu(z): `rmsnorm_fn` on x less its mean.

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
    backend_for(x, "rmsnorm")
    return layernorm_fn_ref(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm)


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
    backend_for(x, "rmsnorm")
    return rms_norm_ref(x, weight, eps, residual)


def _check(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int | None,
) -> None:
    if x.ndim == 0:
        fail(op, "x", "be (..., dim)", "a scalar")
    dim = x.shape[-1]
    expect_dtype(op, "x", x)
    expect_shape(op, "weight", weight, "(dim,)", (dim,))
    expect_dtype(op, "weight", weight)
    if bias is not None:
        expect_shape(op, "bias", bias, "(dim,)", (dim,))
        expect_dtype(op, "bias", bias)
    if z is not None:
        expect_shape(op, "z", z, "the shape of x", x.shape)
        expect_dtype(op, "z", z)
    expect_same_device(op, x=x, weight=weight, bias=bias, z=z)
    if not eps >= 0:
        fail(op, "eps", "be at least 0", eps)
    if group_size is not None and (group_size < 1 or dim % group_size):
        fail(op, "group_size", f"divide dim = {dim}", group_size)
