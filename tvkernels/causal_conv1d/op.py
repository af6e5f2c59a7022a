"""Causal depthwise convolution: out[t] = act(bias + sum_k weight[width - 1 - k] * x[t - k]).

Source: causal-conv1d 1.7 (causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvkernels.causal_conv1d.reference import (
    causal_conv1d_fn_ref,
    causal_conv1d_update_ref,
    causal_conv1d_varlen_states_ref,
)
from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    INDEX_DTYPES,
    expect_choice,
    expect_dtype,
    expect_flags,
    expect_in_place,
    expect_int,
    expect_ndim,
    expect_offsets,
    expect_rows,
    expect_same_device,
    expect_shape,
    fail,
)
from tvkernels.core.library import distinct, kernel_op
from tvkernels.core.plain import first_order

__all__ = ["causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states"]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution of whole sequences, with an activation.

    out[t] = act(bias + sum_{k < width} weight[width - 1 - k] * x[t - k]), where x before token 0 is
    initial_states, or 0.

    Args:
        x: (batch, dim, seqlen), any strides; fastest where dim is the contiguous one.
        weight: (dim, width), width at least 1, any float dtype.
        bias: (dim,) or None.
        seq_idx: (batch, seqlen) int32 or int64, the sequence of each token: a tap that lies in
            another sequence counts 0. A negative entry is padding: its output is 0.
        initial_states: (batch, dim, width - 1), dtype of x: the inputs before token 0. With seq_idx
            they belong to the sequence of token 0, whatever its number, and to no other.
        return_final_states: also return the last width - 1 inputs. With seq_idx they are those of
            the row's last sequence: inputs of other sequences and padding count 0 (causal-conv1d
            refuses the two together).
        final_states_out: (batch, dim, width - 1), dtype of x, strides that do not overlap, no leaf
            that requires gradients: where the final states are written if they are returned.
        activation: None, "silu" or "swish" (the same).

    Returns:
        out (batch, dim, seqlen), dtype and layout of x; with return_final_states
        (out, final_states), final_states (batch, dim, width - 1), dtype of x, dim contiguous.

    Raises:
        ValueError: shapes, dtypes, devices or the combination of arguments do not fit.

    Numerics: summed in float32 (float64 for float64 x), the activation included, then one rounding
    to the dtype of x. First order gradients only.
    Source: causal-conv1d 1.7, causal_conv1d_fn.
    """
    op = "causal_conv1d_fn"
    _check_filter(op, x, weight, bias, activation)
    expect_flags(op, return_final_states=return_final_states)
    batch, dim, seqlen = x.shape
    for name, states in {
        "initial_states": initial_states,
        "final_states_out": final_states_out,
    }.items():
        if states is not None:
            expect_shape(
                op, name, states, "(batch, dim, width - 1)", (batch, dim, weight.shape[1] - 1)
            )
            expect_dtype(op, name, states, (x.dtype,))
    if final_states_out is not None:
        expect_in_place(op, "final_states_out", final_states_out)
    if seq_idx is not None:
        expect_shape(op, "seq_idx", seq_idx, "(batch, seqlen)", (batch, seqlen))
        expect_dtype(op, "seq_idx", seq_idx, INDEX_DTYPES)
    expect_same_device(
        op, x=x, seq_idx=seq_idx, initial_states=initial_states, final_states_out=final_states_out
    )
    if backend_for(x, "causal_conv1d") == "reference":
        return causal_conv1d_fn_ref(
            x,
            weight,
            bias,
            seq_idx,
            initial_states,
            return_final_states,
            final_states_out,
            activation,
        )
    tensors = distinct(x, weight, bias, seq_idx, initial_states)
    out, final = _Convolution.apply(*tensors, return_final_states, activation is not None)
    if not return_final_states:
        return out
    return out, final if final_states_out is None else final_states_out.copy_(final)


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The convolution of the next token or tokens; writes them into `conv_state`.

    out[t] = act(bias + sum_{k < width} weight[width - 1 - k] * x[t - k]), where x before token 0 is
    the newest of conv_state.

    Args:
        x: (batch, dim) or (batch, dim, seqlen), any strides.
        conv_state: (batch, dim, state_len), dtype of x, state_len at least width - 1, any strides
            that do not overlap: the last inputs, oldest first; written in place. Its first size is
            free if conv_state_indices is given.
        weight: (dim, width), any float dtype.
        bias: (dim,) or None.
        activation: None, "silu" or "swish" (the same).
        cache_seqlens: (batch,) int32 or int64. If given, conv_state is a circular buffer: input t
            goes to slot (cache_seqlens + t) % state_len, and the slots before hold the history.
        conv_state_indices: (batch,) int32 or int64, the row of conv_state of each entry, each row
            named at most once; a negative entry is padding: its output is 0, no state is written.

    Returns:
        out: shape and dtype of x.

    Raises:
        ValueError: shapes, dtypes, devices or the activation do not fit.

    Numerics: as `causal_conv1d_fn`. For inference: no gradient flows.
    Source: causal-conv1d 1.7, causal_conv1d_update.
    """
    op = "causal_conv1d_update"
    expect_ndim(op, "x", x, "(batch, dim) or (batch, dim, seqlen)", 2, 3)
    whole = x.unsqueeze(-1) if x.ndim == 2 else x
    _check_filter(op, whole, weight, bias, activation)
    _check_state(op, whole, conv_state, weight, cache_seqlens, conv_state_indices)
    if backend_for(x, "causal_conv1d") == "reference":
        out = causal_conv1d_update_ref(
            whole, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices
        )
    else:
        silu = activation is not None
        out = _update(whole, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices)
    return out.squeeze(-1) if x.ndim == 2 else out


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The convolution states after packed sequences: the last state_len inputs of each.

    states[i, :, state_len - j] = x[cu_seqlens[i + 1] - j], or 0 where that is before sequence i.

    Args:
        x: (total_tokens, dim), the sequences one after the other, any strides.
        cu_seqlens: (batch + 1,) int32 or int64: where each begins, and the end of the last:
            from 0, never falling, to at most total_tokens (checked on the CPU).
        state_len: inputs per state, at least 1.

    Returns:
        states (batch, dim, state_len), dtype of x, dim contiguous.

    Raises:
        ValueError: shapes, dtypes, devices or state_len do not fit.

    Numerics: a copy, exact.
    Source: causal-conv1d 1.7, causal_conv1d_varlen_states.
    """
    op = "causal_conv1d_varlen_states"
    expect_ndim(op, "x", x, "(total_tokens, dim)", 2)
    expect_dtype(op, "x", x)
    expect_offsets(op, "cu_seqlens", cu_seqlens, x.shape[0], exact=False)
    expect_same_device(op, x=x, cu_seqlens=cu_seqlens)
    expect_int(op, "state_len", state_len, "be an int of at least 1", 1)
    if backend_for(x, "causal_conv1d") == "reference":
        return causal_conv1d_varlen_states_ref(x, cu_seqlens, state_len)
    return _Varlen.apply(x, cu_seqlens, state_len)


def _check_filter(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> None:
    expect_ndim(op, "x", x, "(batch, dim, seqlen)", 3)
    expect_dtype(op, "x", x)
    dim = x.shape[1]
    expect_shape(op, "weight", weight, "(dim, width)", (dim, None))
    expect_dtype(op, "weight", weight)
    if weight.shape[1] < 1:
        fail(op, "weight", "have a width of at least 1", 0)
    if bias is not None:
        expect_shape(op, "bias", bias, "(dim,)", (dim,))
        expect_dtype(op, "bias", bias)
    expect_same_device(op, x=x, weight=weight, bias=bias)
    expect_choice(op, "activation", activation, (None, "silu", "swish"))


def _check_state(
    op: str,
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    cache_seqlens: Tensor | None,
    indices: Tensor | None,
) -> None:
    batch, dim, _ = x.shape
    rows = batch if indices is None else None
    expect_shape(op, "conv_state", conv_state, "(batch, dim, state_len)", (rows, dim, None))
    expect_dtype(op, "conv_state", conv_state, (x.dtype,))
    expect_in_place(op, "conv_state", conv_state)
    if conv_state.shape[2] < weight.shape[1] - 1:
        fail(
            op,
            "conv_state",
            f"have state_len of at least width - 1 = {weight.shape[1] - 1}",
            conv_state.shape[2],
        )
    if cache_seqlens is not None:
        expect_shape(op, "cache_seqlens", cache_seqlens, "(batch,)", (batch,))
        expect_dtype(op, "cache_seqlens", cache_seqlens, INDEX_DTYPES)
    if indices is not None:
        writes = x.shape[2] > 0
        expect_rows(op, "conv_state_indices", indices, batch, len(conv_state), writes=writes)
    expect_same_device(
        op, x=x, conv_state=conv_state, cache_seqlens=cache_seqlens, conv_state_indices=indices
    )


class _Convolution(torch.autograd.Function):
    """out, and the final states: without elements unless they are asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seq_idx: Tensor | None,
        initial: Tensor | None,
        final: bool,
        silu: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, bias, seq_idx, initial)
        ctx.final, ctx.silu = final, silu
        return _fwd(x, weight, bias, seq_idx, initial, final, silu)

    @staticmethod
    @first_order("causal_conv1d_fn")
    def backward(ctx: Any, dout: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, seq_idx, initial = ctx.saved_tensors
        dx, dweight, dbias, dinitial = _bwd(
            dout, dfinal if ctx.final else None, x, weight, bias, seq_idx, initial, ctx.silu
        )
        dinitial = None if initial is None else dinitial
        return dx, dweight, None if bias is None else dbias, None, dinitial, None, None


def _like(x: Tensor) -> Tensor:
    """Empty, shape of x, and the channels or the tokens side by side as in x."""
    if x.stride(1) == 1:
        return _channel_last(x, x.shape[0], x.shape[2])
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _channel_last(x: Tensor, batch: int, seqlen: int) -> Tensor:
    """Empty (batch, dim, seqlen), dim contiguous. No view: autograd lets nobody modify a view in
    place that a Function returns."""
    dim = x.shape[1]
    return x.new_empty_strided((batch, dim, seqlen), (dim * seqlen, 1, dim))


def _states_like(x: Tensor, state_len: int) -> Tensor:
    return _channel_last(x, x.shape[0], state_len)


def _new_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    final: bool,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    return _like(x), _states_like(x, weight.shape[1] - 1) if final else x.new_empty(0)


@kernel_op("tvkernels::causal_conv1d_fwd", fake=_new_fwd)
def _fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    final: bool,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    from tvkernels.causal_conv1d.kernel import conv_forward

    out, final_states = _new_fwd(x, weight, bias, seq_idx, initial, final, silu)
    conv_forward(out, final_states if final else None, x, weight, bias, seq_idx, initial, silu)
    return out, final_states


def _fake_bwd(
    dout: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    dinitial = x.new_empty(0) if initial is None else _states_like(x, weight.shape[1] - 1)
    return _like(x), dweight, dbias, dinitial


@kernel_op("tvkernels::causal_conv1d_bwd", fake=_fake_bwd)
def _bwd(
    dout: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, dbias, dbefore; the last two without elements where there is none."""
    from tvkernels.causal_conv1d.kernel import conv_backward

    dx, dweight, dbias, dinitial = _fake_bwd(dout, dfinal, x, weight, bias, seq_idx, initial, silu)
    given = None if initial is None else dinitial
    sums = conv_backward(dx, given, dout, dfinal, x, weight, bias, seq_idx, initial, silu)
    dweight.copy_(sums[: weight.shape[1]].t())
    if bias is not None:
        dbias.copy_(sums[-1])
    return dx, dweight, dbias, dinitial


def _new_update(x: Tensor, *_: Any) -> Tensor:
    return _states_like(x, x.shape[2])


@kernel_op("tvkernels::causal_conv1d_update", fake=_new_update, mutates_args=("conv_state",))
def _update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    from tvkernels.causal_conv1d.state_kernel import conv_update

    out = _new_update(x)
    conv_update(out, x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices)
    return out


class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
        ctx.save_for_backward(cu_seqlens)
        ctx.shape = x.shape
        return _varlen_fwd(x, cu_seqlens, state_len)

    @staticmethod
    @first_order("causal_conv1d_varlen_states")
    def backward(ctx: Any, dstates: Tensor) -> tuple[Tensor | None, ...]:
        (cu_seqlens,) = ctx.saved_tensors
        return _varlen_bwd(dstates, cu_seqlens, ctx.shape[0]), None, None


def _new_varlen(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    return _channel_last(x, cu_seqlens.shape[0] - 1, state_len)


@kernel_op("tvkernels::causal_conv1d_varlen_fwd", fake=_new_varlen)
def _varlen_fwd(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    from tvkernels.causal_conv1d.state_kernel import varlen_states

    states = _new_varlen(x, cu_seqlens, state_len)
    varlen_states(states, x, cu_seqlens)
    return states


def _new_varlen_bwd(dstates: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    return dstates.new_zeros(total, dstates.shape[1])


@kernel_op("tvkernels::causal_conv1d_varlen_bwd", fake=_new_varlen_bwd)
def _varlen_bwd(dstates: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    from tvkernels.causal_conv1d.state_kernel import varlen_states

    dx = _new_varlen_bwd(dstates, cu_seqlens, total)
    varlen_states(dstates, dx, cu_seqlens, back=True)
    return dx
