"""Triton engine of the convolution's states: the decode step in place, and those of packed tokens.

Shapes: x, out (batch, dim, seqlen), conv_state (rows, dim, state_len), weight (dim, WIDTH), all by
any strides. Neither kernel is tuned: the first writes in place, the second copies a few rows.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, strides

# channels of a program, one for each thread; fewer where the states are long
CHANNELS, WARPS = 128, 4
TILE = 4096


@triton.jit
def _slot(t, turn, state_len, RING: tl.constexpr):
    """Where the state holds input t, with t = 0 the first of x."""
    if RING:
        slot = (turn + t) % state_len
        slot = tl.where(slot < 0, slot + state_len, slot)
    else:
        slot = t + state_len
    return slot


@triton.jit
def _recent(
    x_ptr, state_ptr, t, turn, state_len, x_token, state_slot, mask, RING: tl.constexpr
):  # fmt: skip
    """Inputs t, lanes by lanes: of x or, where t is negative, of the state."""
    slot = _slot(t, turn, state_len, RING)
    new = tl.load(x_ptr + t * x_token, mask=mask & (t >= 0), other=0.0)
    old = tl.load(state_ptr + slot * state_slot, mask=mask & (t < 0), other=0.0)
    return tl.where(t >= 0, new, old)


@triton.jit
def conv_update_kernel(
    x_ptr, state_ptr, w_ptr, b_ptr, turns_ptr, rows_ptr, out_ptr,
    dim, seqlen, state_len,
    x_batch, x_dim, x_token, state_row, state_dim, state_slot, w_dim, w_tap,
    turns_stride, rows_stride, out_batch, out_dim, out_token,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, SILU: tl.constexpr, RING: tl.constexpr,
    ACC: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # one program owns CHANNELS channels of one entry: of its x, its state and its output
    blocks = tl.cdiv(dim, CHANNELS)
    channel = (tl.program_id(0) % blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    entry = (tl.program_id(0) // blocks).to(tl.int64)
    lanes = tl.zeros((CHANNELS,), tl.int64)
    row, turn = entry, entry
    if rows_ptr is not None:
        row = tl.load(rows_ptr + entry * rows_stride).to(tl.int64)
    if RING:
        turn = tl.load(turns_ptr + entry * turns_stride).to(tl.int64)
    inside = channel < dim
    live = inside & (row + lanes >= 0)
    x_ptr += entry * x_batch + channel * x_dim
    state_ptr += row * state_row + channel * state_dim
    out_ptr += entry * out_batch + channel * out_dim

    bias = tl.zeros((CHANNELS,), ACC)
    if b_ptr is not None:
        bias = tl.load(b_ptr + channel, mask=live, other=0.0).to(ACC)
    for t in range(seqlen):
        y = bias
        for k in tl.static_range(WIDTH):
            u = lanes + (t - (WIDTH - 1) + k)
            v = _recent(x_ptr, state_ptr, u, turn, state_len, x_token, state_slot, live, RING)
            tap = tl.load(w_ptr + channel * w_dim + k * w_tap, mask=live, other=0.0)
            y += tap.to(ACC) * v.to(ACC)
        if SILU:
            y = silu(y)
        y = y.to(out_ptr.dtype.element_ty)
        # padding: the taps and the bias were read as 0
        tl.store(out_ptr + (t + lanes) * out_token, y, mask=inside)

    # slot by slot the input that will stand there; in a ring the older ones stay
    slots = tl.arange(0, SLOTS).to(tl.int64)
    if RING:
        newest = seqlen - 1
        u = newest - _slot(newest - slots, turn, state_len, RING)
        written = (slots < state_len) & (u >= 0)
    else:
        u = slots + (seqlen - state_len)
        written = slots < state_len
    mask = live[:, None] & written[None, :]
    u = u[None, :] + lanes[:, None]
    v = _recent(
        x_ptr[:, None], state_ptr[:, None], u, turn, state_len, x_token, state_slot, mask, RING
    )
    # another thread may still have to read what this one is about to write
    tl.debug_barrier()
    tl.store(state_ptr[:, None] + (slots * state_slot)[None, :], v, mask=mask)


def conv_update(out, x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices):
    """Fills out and moves x into conv_state."""
    batch, dim, seqlen = x.shape
    width, state_len = weight.shape[1], conv_state.shape[2]
    slots = triton.next_power_of_2(max(1, state_len))
    channels = max(1, min(CHANNELS, TILE // slots))
    conv_update_kernel[(triton.cdiv(dim, channels) * batch,)](
        x, conv_state, weight, None if bias is None else bias.contiguous(), cache_seqlens,
        conv_state_indices, out, dim, seqlen, state_len, *x.stride(), *conv_state.stride(),
        *weight.stride(), *strides(cache_seqlens, 1), *strides(conv_state_indices, 1),
        *out.stride(),
        WIDTH=width, SLOTS=slots, SILU=silu,
        # a state of no slots turns nowhere
        RING=cache_seqlens is not None and state_len > 0,
        ACC=accumulator(x.dtype), CHANNELS=channels, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def varlen_states_kernel(
    x_ptr, cu_ptr, states_ptr, dim, state_len, x_token, x_dim, cu_stride,
    states_seq, states_dim, states_slot, BACK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # one program owns CHANNELS channels of one slot of one sequence's state
    blocks = tl.cdiv(dim, CHANNELS)
    channel = (tl.program_id(0) % blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    place = (tl.program_id(0) // blocks).to(tl.int64)
    sequence, slot = place // state_len, place % state_len
    start = tl.load(cu_ptr + sequence * cu_stride).to(tl.int64)
    end = tl.load(cu_ptr + (sequence + 1) * cu_stride).to(tl.int64)
    token = end - state_len + slot + tl.zeros((CHANNELS,), tl.int64)
    inside = channel < dim
    known = inside & (token >= start)
    x_ptr += token * x_token + channel * x_dim
    states_ptr += sequence * states_seq + slot * states_slot + channel * states_dim
    if BACK:
        tl.store(x_ptr, tl.load(states_ptr, mask=known, other=0.0), mask=known)
    else:
        tl.store(states_ptr, tl.load(x_ptr, mask=known, other=0.0), mask=inside)


def varlen_states(states, x, cu_seqlens, back=False):
    """Fills the states from the packed tokens x; `back`: x, where a state was read, from them."""
    (count, dim, state_len), channels = states.shape, CHANNELS
    varlen_states_kernel[(triton.cdiv(dim, channels) * count * state_len,)](
        x, cu_seqlens, states, dim, state_len, *x.stride(), *cu_seqlens.stride(),
        *states.stride(), BACK=back, CHANNELS=channels, num_warps=WARPS,
    )  # fmt: skip
