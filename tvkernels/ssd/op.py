"""The Mamba-2 scan: S_t = exp(delta_t A) S_{t-1} + delta_t x_t B_t^T, out_t = S_t C_t + D x_t.

Source: mamba-ssm 2.3.2 (mamba_chunk_scan_combined); Dao & Gu 2024 (arXiv 2405.21060).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    expect_dtype,
    expect_flags,
    expect_int,
    expect_limits,
    expect_ndim,
    expect_offsets,
    expect_same_device,
    expect_shape,
    fail,
)
from tvkernels.core.library import distinct, kernel_op
from tvkernels.core.plain import first_order
from tvkernels.ssd.reference import mamba_chunk_scan_combined_ref

__all__ = ["mamba_chunk_scan_combined"]

_OP = "mamba_chunk_scan_combined"


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """The Mamba-2 scan of whole sequences.

        delta_t = clamp(softplus(dt_t + dt_bias), *dt_limit)
        S_t = exp(delta_t A) S_{t-1} + delta_t x_t B_t^T,    out_t = (S_t C_t + D x_t) * silu(z_t)

    per head; head h reads B and C of group h // (nheads / ngroups). softplus only if dt_softplus.

    Args:
        x: (batch, seqlen, nheads, headdim), any float dtype, any strides, seqlen 0 included.
        dt: (batch, seqlen, nheads).
        A: (nheads,), negative.
        B, C: (batch, seqlen, ngroups, d_state), ngroups a divisor of nheads.
        chunk_size: a positive int, accepted for compatibility: kernels and reference choose their
            own chunk sizes, and the result would differ by rounding only.
        D: (nheads,) or (nheads, headdim).
        z: (batch, seqlen, nheads, headdim), the gate.
        dt_bias: (nheads,).
        initial_states: (batch, nheads, headdim, d_state), the state before token 0. It enters the
            sequence of token 0, whatever number seq_idx gives that one (mamba-ssm drops it unless
            the number is 0).
        seq_idx: (batch, seqlen) int32 or int64: the state is reset to 0 where it changes.
        cu_seqlens: (num_seqs + 1,) int32 or int64, tokens cu_seqlens[i] to cu_seqlens[i + 1] are
            sequence i: from 0, never falling, to at most seqlen (checked on the CPU). Used for
            return_varlen_states only: the resets of out come from seq_idx.
        dt_softplus: apply softplus to dt + dt_bias.
        dt_limit: (least, greatest) delta.
        return_final_states: also return the state after the last token: with seq_idx that of the
            row's last sequence.
        return_varlen_states: also return the state after the last token of each sequence of
            cu_seqlens; batch must be 1. With seq_idx the state of the recurrence above; without it
            each sequence is taken alone (initial_states enters the one of token 0), while out still
            runs through. An empty sequence has state 0.
        state_dtype: a float dtype or None, accepted for compatibility: the dtype of the states
            between chunks in mamba-ssm. Here they are float32 whatever it says (float64 for float64
            x, and float64 may be asked for with such x only).

    Returns:
        out (batch, seqlen, nheads, headdim), contiguous, dtype of x; or (out, final_states),
        (out, varlen_states) or (out, final_states, varlen_states). final_states (batch, nheads,
        headdim, d_state) is float32 (float64 for float64 x), varlen_states (num_seqs, nheads,
        headdim, d_state) has the dtype of C.

    Raises:
        ValueError: shapes, dtypes, devices or the combination of arguments do not fit.
        NotImplementedError: on a GPU with less than 160 KiB of shared memory in a block (RTX has
            99): d_state above 256 where not all of x, B and C are of 16 bit (128 for float64); and
            where gradients are recorded headdim or d_state above 512 (256 unless of 16 bit), or
            headdim * d_state above 65,536.

    Numerics: step sizes, decays, every sum and the state from chunk to chunk are float32 (float64
    for float64 x), out is rounded once. If x, B and C are of 16 bit, the kernels' matrix products
    take operands of 16 bit, each rounded once: the tokens' contributions to the state, the state as
    C reads it, the weights between tokens, and in the backward dout silu(z); the reference's stay
    float32. Values that decay below the normal numbers may become 0. NaN and infinity are what the
    recurrence gives; at an infinity in C the kernel has NaN. First order gradients for every float
    argument.

    Memory: training keeps the inputs and nothing else (the reference four float32 per token and
    head too), there is no option to keep states: backward computes them anew, and takes 56 kB per
    token of 128 heads of 80, d_state 128 and 16 bit while it runs.
    Source: mamba-ssm 2.3.2, mamba_chunk_scan_combined.
    """
    _check_tokens(x, dt, A, B, C, z, seq_idx)
    _check_heads(x, B, D, dt_bias, initial_states)
    expect_flags(
        _OP, dt_softplus=dt_softplus, return_final_states=return_final_states,
        return_varlen_states=return_varlen_states,
    )  # fmt: skip
    _check_options(x, chunk_size, cu_seqlens, dt_limit, return_varlen_states)
    _check_state_dtype(x, state_dtype)
    expect_same_device(
        _OP,
        **{"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias},
        initial_states=initial_states,
        seq_idx=seq_idx,
        cu_seqlens=cu_seqlens,
    )
    if backend_for(x, "ssd") == "reference":
        return mamba_chunk_scan_combined_ref(
            x,
            dt,
            A,
            B,
            C,
            chunk_size,
            D,
            z,
            dt_bias,
            initial_states,
            seq_idx,
            cu_seqlens,
            dt_softplus,
            dt_limit,
            return_final_states,
            return_varlen_states,
            state_dtype,
        )
    tensors = distinct(x, dt, A, B, C, D, z, dt_bias, initial_states)
    offsets = cu_seqlens if return_varlen_states else None
    steps = _StepSizes(bool(dt_softplus), float(dt_limit[0]), float(dt_limit[1]))
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, final_states, states = _Scan.apply(*tensors, seq_idx, offsets, steps, learns)
    results = [out]
    if return_final_states:
        results.append(final_states)
    if return_varlen_states:
        results.append(states)
    return results[0] if len(results) == 1 else tuple(results)


def _check_tokens(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    expect_ndim(_OP, "x", x, "(batch, seqlen, nheads, headdim)", 4)
    batch, seqlen, nheads, headdim = x.shape
    if nheads < 1 or headdim < 1:
        fail(_OP, "x", "have nheads and headdim of at least 1", f"shape {tuple(x.shape)}")
    expect_shape(_OP, "dt", dt, "(batch, seqlen, nheads)", (batch, seqlen, nheads))
    expect_shape(_OP, "A", A, "(nheads,)", (nheads,))
    layout = "(batch, seqlen, ngroups, d_state)"
    expect_shape(_OP, "B", B, layout, (batch, seqlen, None, None))
    expect_shape(_OP, "C", C, layout, B.shape)
    if B.shape[2] < 1 or nheads % B.shape[2]:
        fail(_OP, "B", f"have ngroups that divide nheads = {nheads}", f"ngroups = {B.shape[2]}")
    for name, tensor in {"x": x, "dt": dt, "A": A, "B": B, "C": C}.items():
        expect_dtype(_OP, name, tensor)
    if z is not None:
        expect_shape(_OP, "z", z, "the shape of x", x.shape)
        expect_dtype(_OP, "z", z)
    if seq_idx is not None:
        expect_shape(_OP, "seq_idx", seq_idx, "(batch, seqlen)", (batch, seqlen))
        expect_dtype(_OP, "seq_idx", seq_idx, INDEX_DTYPES)


def _check_heads(
    x: Tensor,
    B: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
) -> None:
    batch, _, nheads, headdim = x.shape
    if D is not None:
        expect_ndim(_OP, "D", D, "(nheads,) or (nheads, headdim)", 1, 2)
        sizes = (nheads, headdim)[: D.ndim]
        expect_shape(_OP, "D", D, "(nheads,) or (nheads, headdim)", sizes)
        expect_dtype(_OP, "D", D)
    if dt_bias is not None:
        expect_shape(_OP, "dt_bias", dt_bias, "(nheads,)", (nheads,))
        expect_dtype(_OP, "dt_bias", dt_bias)
    if initial_states is not None:
        layout = "(batch, nheads, headdim, d_state)"
        sizes = (batch, nheads, headdim, B.shape[3])
        expect_shape(_OP, "initial_states", initial_states, layout, sizes)
        expect_dtype(_OP, "initial_states", initial_states)


def _check_options(
    x: Tensor,
    chunk_size: int,
    cu_seqlens: Tensor | None,
    dt_limit: tuple[float, float],
    return_varlen_states: bool,
) -> None:
    expect_int(_OP, "chunk_size", chunk_size, "be a positive int", 1)
    expect_limits(_OP, "dt_limit", dt_limit)
    if cu_seqlens is not None:
        expect_offsets(_OP, "cu_seqlens", cu_seqlens, x.shape[1], exact=False)
    if return_varlen_states and cu_seqlens is None:
        fail(_OP, "cu_seqlens", "be given with return_varlen_states", None)
    if return_varlen_states and x.shape[0] != 1:
        fail(_OP, "x", "have batch 1 with return_varlen_states", f"batch {x.shape[0]}")


def _check_state_dtype(x: Tensor, state_dtype: Any) -> None:
    """The state is at least as wide as `state_dtype`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    allowed = [dtype for dtype in FLOAT_DTYPES if torch.promote_types(dtype, wide) == wide]
    if state_dtype is not None and state_dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        fail(_OP, "state_dtype", f"be None, {names} (the state is {str(wide)[6:]})", state_dtype)


class _StepSizes(NamedTuple):
    """How dt becomes delta."""

    softplus: bool
    least: float
    greatest: float


class _Scan(torch.autograd.Function):
    """out, the states after the last token, and those after each sequence of cu_seqlens."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        initial_states: Tensor | None,
        seq_idx: Tensor | None,
        cu_seqlens: Tensor | None,
        steps: _StepSizes,
        learns: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens)
        ctx.save_for_backward(*inputs)
        ctx.steps = steps
        return _scan_fwd(*inputs, *steps, learns)

    @staticmethod
    @first_order("mamba_chunk_scan_combined")
    def backward(
        ctx: Any, dout: Tensor, dfinal_states: Tensor, dstates: Tensor
    ) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grads = _scan_bwd(dout, dfinal_states, dstates, *inputs, *ctx.steps)
        own = [None if x is None else grad for x, grad in zip(inputs, grads)]
        return (*own, None, None, None, None)


def _fake_scan_fwd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    cu_seqlens = rest[5]
    (batch, _, nheads, headdim), d_state = x.shape, B.shape[3]
    num_seqs = 0 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    wide = torch.promote_types(x.dtype, torch.float32)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(batch, nheads, headdim, d_state, dtype=wide),
        C.new_empty(num_seqs, nheads, headdim, d_state),
    )


@kernel_op("tvkernels::chunk_scan_fwd", fake=_fake_scan_fwd)
def _scan_fwd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    softplus: bool,
    least: float,
    greatest: float,
    learns: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """As _Scan; without cu_seqlens the third tensor is empty. With `learns` a backward follows."""
    from tvkernels.ssd.kernel import scan_forward

    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens)
    return scan_forward(*inputs, softplus, (least, greatest), learns)


def _fake_scan_bwd(
    dout: Tensor, dfinal_states: Tensor, dstates: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    return tuple(
        dout.new_empty(0)
        if x is None
        else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in inputs[:9]
    )


@kernel_op("tvkernels::chunk_scan_bwd", fake=_fake_scan_bwd)
def _scan_bwd(
    dout: Tensor,
    dfinal_states: Tensor,
    dstates: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    softplus: bool,
    least: float,
    greatest: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The cotangents of x to initial_states, empty for an input that is None."""
    from tvkernels.ssd.kernel import scan_backward

    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens)
    after_each = None if cu_seqlens is None else dstates
    grads = scan_backward(*inputs, softplus, (least, greatest), dout, dfinal_states, after_each)
    dx, *more = (dout.new_empty(0) if grad is None else grad for grad in grads)
    ddt, dA, dB, dC, dD, dz, ddt_bias, dinitial_states = more
    return dx, ddt, dA, dB, dC, dD, dz, ddt_bias, dinitial_states
