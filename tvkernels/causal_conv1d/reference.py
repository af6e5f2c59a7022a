"""Plain PyTorch reference of the causal convolution; also runs on CPUs.

A depthwise convolution of a few taps is a FIR filter over rows (batch, seqlen, dim): one
multiply-add per tap on shifted views. Rows are computed in blocks that fit in cache, so memory is
read and written once, and the backward recomputes its block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tvkernels.core.plain import first_order, gather_rows, scatter_rows

__all__ = ["causal_conv1d_fn_ref", "causal_conv1d_update_ref", "causal_conv1d_varlen_states_ref"]

# elements of x per block: its float32 temporaries stay in cache, and each operation is long enough
# to make the threads' synchronisation at its end cheap
BLOCK_ELEMENTS = 1 << 19
# fewest rows per block, for layouts whose rows are not contiguous
MIN_ROWS = 32


def causal_conv1d_fn_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The convolution of whole sequences: see `causal_conv1d_fn`."""
    seqlen, width = x.shape[2], weight.shape[1]
    taps, bias = _filter(x, weight, bias)
    seq_idx = seq_idx if seqlen else None
    rows = x.transpose(1, 2)
    before = None if initial_states is None else initial_states.transpose(1, 2)
    # torch.compile fuses the formula itself; a loop over blocks would only be unrolled
    if torch.compiler.is_compiling() or x.numel() <= BLOCK_ELEMENTS:
        window = _window(rows, before, 0, seqlen, width)
        out = _fir(window, _ids_window(seq_idx, 0, seqlen, width), taps, bias, activation)
        out = out if x.stride(1) == 1 else out.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        out = _FirByBlocks.apply(rows, taps, bias, seq_idx, before, activation)
    out = out.transpose(1, 2)
    if not return_final_states:
        return out
    final = _window(rows, before, seqlen, seqlen, width)
    if seq_idx is not None:
        ids, newest = _ids_window(seq_idx, seqlen, seqlen, width), seq_idx[:, -1:, None]
        final = final.where((ids == newest) & (newest >= 0), 0.0)
    if final_states_out is not None:
        return out, final_states_out.copy_(final.transpose(1, 2))
    # copy: a view would keep all of x alive, and the next update would write into x
    return out, final.clone(memory_format=torch.contiguous_format).transpose(1, 2)


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The next tokens' convolution, in place on `conv_state`: see `causal_conv1d_update`.

    x is (batch, dim, seqlen).
    """
    state = gather_rows(conv_state, conv_state_indices)
    if torch.is_grad_enabled():
        # a gradient may need the state of before, which is written to below
        state = state.clone()
    if cache_seqlens is None:
        history, new = _shift(state, x, weight.shape[1])
    else:
        history, new = _turn(state, x, weight.shape[1], cache_seqlens)
    window = torch.cat([history, x], dim=2).transpose(1, 2)
    out = _fir(window, None, *_filter(x, weight, bias), activation).transpose(1, 2)
    if conv_state_indices is None:
        conv_state.copy_(new)
        return out
    scatter_rows(conv_state, conv_state_indices, new)
    return out.masked_fill((conv_state_indices < 0)[:, None, None], 0.0)


def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last `state_len` rows of each packed sequence: see `causal_conv1d_varlen_states`."""
    row = cu_seqlens[1:, None] + torch.arange(-state_len, 0, device=x.device)
    if x.shape[0] == 0:
        return x.new_zeros(*row.shape, x.shape[1]).transpose(1, 2)
    foreign = row < cu_seqlens[:-1, None]
    return x[row.clamp_min(0)].masked_fill(foreign[:, :, None], 0.0).transpose(1, 2)


def _filter(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(taps (width, dim), bias) in the dtype to compute in; each tap is contiguous."""
    taps = weight.t().to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    return taps, taps.new_zeros(len(weight)) if bias is None else bias.to(taps.dtype)


def _fir(
    window: Tensor, ids: Tensor | None, taps: Tensor, bias: Tensor, activation: str | None
) -> Tensor:
    """The formula: window (batch, width - 1 + rows, dim) -> (batch, rows, dim).

    `ids` is seq_idx on the window's rows, (batch, width - 1 + rows, 1).
    """
    width = taps.shape[0]
    rows = window.shape[1] - (width - 1)
    wide = window.to(taps.dtype)
    out = bias
    for k in range(width):
        tap = wide[:, k : k + rows]
        if ids is not None:
            # not multiplied by 0: the other sequence may hold inf or nan
            tap = tap.where(ids[:, k : k + rows] == ids[:, width - 1 :], 0.0)
        out = torch.addcmul(out, tap, taps[k]) if k == 0 else out.addcmul_(tap, taps[k])
    if activation is not None:
        out = F.silu(out)
    if ids is not None:
        out = out.masked_fill(ids[:, width - 1 :] < 0, 0.0)
    return out.to(window.dtype)


def _window(rows: Tensor, before: Tensor | None, start: int, stop: int, width: int) -> Tensor:
    """Rows start - (width - 1) to stop; rows before row 0 come from `before` (None: 0)."""
    missing = width - 1 - start
    if missing <= 0:
        return rows[:, start - width + 1 : stop]
    if before is None:
        before = rows.new_zeros(rows.shape[0], width - 1, rows.shape[2])
    return torch.cat([before[:, start:], rows[:, :stop]], dim=1)


def _ids_window(seq_idx: Tensor | None, start: int, stop: int, width: int) -> Tensor | None:
    """`_window` of seq_idx; rows before row 0 are of the sequence of row 0."""
    if seq_idx is None:
        return None
    ids = seq_idx.unsqueeze(-1)
    return _window(ids, ids[:, :1].expand(-1, width - 1, -1), start, stop, width)


class _FirByBlocks(torch.autograd.Function):
    """`_fir` over blocks of rows; the backward runs autograd on one block at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        taps: Tensor,
        bias: Tensor,
        seq_idx: Tensor | None,
        before: Tensor | None,
        activation: str | None,
    ) -> Tensor:
        ctx.save_for_backward(x, taps, bias, seq_idx, before)
        ctx.activation = activation
        width = taps.shape[0]
        out = torch.empty_like(x)
        for start, stop in _blocks(x):
            window = _window(x, before, start, stop, width)
            ids = _ids_window(seq_idx, start, stop, width)
            out[:, start:stop] = _fir(window, ids, taps, bias, activation)
        return out

    @staticmethod
    @first_order("causal_conv1d_fn")
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, bias, seq_idx, before = ctx.saved_tensors
        width = taps.shape[0]
        dx, dtaps, dbias = torch.empty_like(x), torch.zeros_like(taps), torch.zeros_like(bias)
        # gradients of the rows before a block; that block comes next and adds them
        carry = torch.zeros_like(x[:, :0], dtype=taps.dtype)
        for start, stop in reversed(_blocks(x)):
            window = _window(x, before, start, stop, width).to(taps.dtype)
            ids = _ids_window(seq_idx, start, stop, width)
            leaves = [t.detach().requires_grad_() for t in (window, taps, bias)]
            with torch.enable_grad():
                out = _fir(leaves[0], ids, leaves[1], leaves[2], ctx.activation)
            dwindow, dtaps_block, dbias_block = torch.autograd.grad(
                out, leaves, dout[:, start:stop].to(out.dtype)
            )
            dwindow[:, dwindow.shape[1] - carry.shape[1] :] += carry
            dx[:, start:stop] = dwindow[:, width - 1 :]
            carry = dwindow[:, : width - 1]
            dtaps += dtaps_block
            dbias += dbias_block
        dbefore = None if before is None else carry.to(before.dtype)
        return dx, dtaps, dbias, None, dbefore, None


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    batch, seqlen, dim = x.shape
    step = max(MIN_ROWS, BLOCK_ELEMENTS // (batch * dim))
    return [(start, min(start + step, seqlen)) for start in range(0, seqlen, step)]


def _shift(state: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(history of x, new state) of a state that holds the last inputs in order."""
    state_len = state.shape[2]
    joined = torch.cat([state, x], dim=2)
    return state[:, :, state_len - (width - 1) :], joined[:, :, joined.shape[2] - state_len :]


def _turn(state: Tensor, x: Tensor, width: int, cache_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """(history of x, new state) of a circular state that already holds `cache_seqlens` inputs."""
    state_len, seqlen = state.shape[2], x.shape[2]

    def slots(first: int, last: int) -> Tensor:
        place = cache_seqlens.long()[:, None] + torch.arange(first, last, device=x.device)
        return place.remainder(state_len)[:, None].expand(-1, x.shape[1], -1)

    # only the last state_len inputs stay in the state
    kept = min(seqlen, state_len)
    history = state.gather(2, slots(1 - width, 0))
    new = state.scatter(2, slots(seqlen - kept, seqlen), x[:, :, seqlen - kept :])
    return history, new
