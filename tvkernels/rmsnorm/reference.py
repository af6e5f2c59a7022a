"""Reference of the norms in plain PyTorch; it is what runs on a CPU.

Rows are independent, so a large input is normed in blocks of rows that fit the cache: one pass over
memory, no float32 copy of a 16-bit input, and a backward that recomputes its block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tvkernels.core.plain import first_order

__all__ = ["layernorm_fn_ref", "rms_norm_ref", "rmsnorm_fn_ref"]

# elements of x per block: float32 temporaries stay in the cache, and each operation is large enough
# that synchronising its threads costs little
BLOCK_ELEMENTS = 1 << 19


class _Form(NamedTuple):
    eps: float
    group_size: int
    norm_before_gate: bool
    is_rms_norm: bool


def rmsnorm_fn_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """Root-mean-square norm of each group, gated by silu(z): see `rmsnorm_fn`."""
    return layernorm_fn_ref(x, weight, bias, z, eps, group_size, norm_before_gate, True)


def layernorm_fn_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Norm of each group, gated by silu(z): see `layernorm_fn`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    form = _Form(eps, group_size or x.shape[-1] or 1, norm_before_gate, is_rms_norm)
    # torch.compile fuses the formula by itself, and would unroll the loop over blocks
    if torch.compiler.is_compiling() or x.numel() <= BLOCK_ELEMENTS:
        return _norm(x, weight, bias, z, form).contiguous()
    return _NormByBlocks.apply(x, weight, bias, z, form)


def rms_norm_ref(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square norm of x, or of x + residual with that sum: see `rms_norm`."""
    if residual is None:
        return rmsnorm_fn_ref(x, weight, None, eps=eps)
    new_residual = x + residual
    return rmsnorm_fn_ref(new_residual, weight, None, eps=eps), new_residual


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None, form: _Form) -> Tensor:
    """The formula, computed in the dtype of `weight` and `bias`."""
    y = x.to(weight.dtype)
    gate = None if z is None else F.silu(z.to(weight.dtype))
    if gate is not None and not form.norm_before_gate:
        y = y * gate
    y = y.unflatten(-1, (y.shape[-1] // form.group_size, form.group_size))
    if not form.is_rms_norm:
        y = y - y.mean(-1, keepdim=True)
    y = y * (y.square().mean(-1, keepdim=True) + form.eps).rsqrt()
    y = y.flatten(-2) * weight
    if bias is not None:
        y = y + bias
    if gate is not None and form.norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


class _NormByBlocks(torch.autograd.Function):
    """`_norm` over blocks of rows; the backward runs autograd on one block at a time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None, form: _Form
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, z)
        ctx.form = form
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows, x_rows, z_rows in _blocks(_rows(out), _rows(x), _rows(z)):
            rows.copy_(_norm(x_rows, weight, bias, z_rows, form))
        return out

    @staticmethod
    @first_order("rmsnorm")
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, z = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
        dweight = torch.zeros_like(weight)
        dbias = None if bias is None else torch.zeros_like(bias)
        blocks = _blocks(_rows(dout), _rows(x), _rows(z), _rows(dx), _rows(dz))
        for dout_rows, x_rows, z_rows, dx_rows, dz_rows in blocks:
            x_, weight_, bias_, z_ = (_leaf(t) for t in (x_rows, weight, bias, z_rows))
            with torch.enable_grad():
                out = _norm(x_, weight_, bias_, z_, ctx.form)
            leaves = [t for t in (x_, weight_, bias_, z_) if t is not None]
            grads = iter(torch.autograd.grad(out, leaves, dout_rows))
            dx_rows.copy_(next(grads))
            dweight += next(grads)
            if dbias is not None:
                dbias += next(grads)
            if dz_rows is not None:
                dz_rows.copy_(next(grads))
        return dx, dweight, dbias, dz, None


def _leaf(x: Tensor | None) -> Any:
    return None if x is None else x.detach().requires_grad_()


def _rows(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.reshape(-1, x.shape[-1])


def _blocks(*tensors: Tensor | None) -> Any:
    """The same block of rows of every tensor (None stays None), one block after the other."""
    first = next(t for t in tensors if t is not None)
    step = max(1, BLOCK_ELEMENTS // first.shape[-1])
    for start in range(0, first.shape[0], step):
        yield tuple(None if t is None else t[start : start + step] for t in tensors)
