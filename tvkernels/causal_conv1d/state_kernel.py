"""The convolution's states on Triton: the decode step in place, and the states of packed tokens.

Shapes: x, out (batch, dim, seqlen), conv_state (rows, dim, state_len), weight (dim, WIDTH), all by
any strides. Neither kernel is tuned: the first writes in place, the second copies a few rows.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, strides

# channels of a program, one per thread; fewer if states have more than TILE / CHANNELS slots
CHANNELS, WARPS = 128, 4
TILE = 4096


@triton.jit
def _slot(t, seen, state_len, RING: tl.constexpr):
    """The slot of the state that holds input t, where t = 0 is the first token of x."""
    if RING:
        slot = (seen + t) % state_len
        slot = tl.where(slot < 0, slot + state_len, slot)
    else:
        slot = t + state_len
    return slot


@triton.jit
def _recent(
    x_ptr, state_ptr, t, seen, state_len, x_token, state_slot, mask, RING: tl.constexpr
):  # fmt: skip
    """Inputs t: from x or, where t is negative, from the state."""
    slot = _slot(t, seen, state_len, RING)
    new = tl.load(x_ptr + t * x_token, mask=mask & (t >= 0), other=0.0)
    old = tl.load(state_ptr + slot * state_slot, mask=mask & (t < 0), other=0.0)
    return tl.where(t >= 0, new, old)


@triton.jit
def conv_update_kernel(
    x_ptr, state_ptr, weight_ptr, bias_ptr, cache_seqlens_ptr, indices_ptr, out_ptr,
    dim, seqlen, state_len,
    x_batch, x_dim, x_token, state_row, state_dim, state_slot, weight_dim, weight_tap,
    cache_seqlens_stride, indices_stride, out_batch, out_dim, out_token,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, SILU: tl.constexpr, RING: tl.constexpr,
    ACC: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_DIM channels of one batch entry: of its x, its state and its output
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    channel = (tl.program_id(0) % dim_blocks).to(tl.int64) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    entry = (tl.program_id(0) // dim_blocks).to(tl.int64)
    lanes = tl.zeros((BLOCK_DIM,), tl.int64)
    row, seen = entry, entry
    if indices_ptr is not None:
        row = tl.load(indices_ptr + entry * indices_stride).to(tl.int64)
    if RING:
        seen = tl.load(cache_seqlens_ptr + entry * cache_seqlens_stride).to(tl.int64)
    in_dim = channel < dim
    live = in_dim & (row + lanes >= 0)
    x_ptr += entry * x_batch + channel * x_dim
    state_ptr += row * state_row + channel * state_dim
    out_ptr += entry * out_batch + channel * out_dim

    bias = tl.zeros((BLOCK_DIM,), ACC)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=live, other=0.0).to(ACC)
    for t in range(seqlen):
        y = bias
        for k in tl.static_range(WIDTH):
            u = lanes + (t - (WIDTH - 1) + k)
            v = _recent(x_ptr, state_ptr, u, seen, state_len, x_token, state_slot, live, RING)
            tap = tl.load(weight_ptr + channel * weight_dim + k * weight_tap, mask=live, other=0.0)
            y += tap.to(ACC) * v.to(ACC)
        if SILU:
            y = silu(y)
        y = y.to(out_ptr.dtype.element_ty)
        # a padding entry stores 0: its taps and bias were loaded as 0
        tl.store(out_ptr + (t + lanes) * out_token, y, mask=in_dim)

    # the input that each slot will hold; slots of a ring that get none keep their input
    slots = tl.arange(0, SLOTS).to(tl.int64)
    if RING:
        newest = seqlen - 1
        u = newest - _slot(newest - slots, seen, state_len, RING)
        written = (slots < state_len) & (u >= 0)
    else:
        u = slots + (seqlen - state_len)
        written = slots < state_len
    mask = live[:, None] & written[None, :]
    u = u[None, :] + lanes[:, None]
    v = _recent(
        x_ptr[:, None], state_ptr[:, None], u, seen, state_len, x_token, state_slot, mask, RING
    )
    # race: another thread may still read a slot that this one writes
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
        # a state without slots is no ring: slots are taken modulo state_len
        RING=cache_seqlens is not None and state_len > 0,
        ACC=accumulator(x.dtype), BLOCK_DIM=channels, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def varlen_states_kernel(
    x_ptr, cu_seqlens_ptr, states_ptr, dim, state_len, x_token, x_dim, cu_seqlens_stride,
    states_seq, states_dim, states_slot, REVERSE: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_DIM channels of one slot of one sequence's state
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    channel = (tl.program_id(0) % dim_blocks).to(tl.int64) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    place = (tl.program_id(0) // dim_blocks).to(tl.int64)
    sequence, slot = place // state_len, place % state_len
    start = tl.load(cu_seqlens_ptr + sequence * cu_seqlens_stride).to(tl.int64)
    end = tl.load(cu_seqlens_ptr + (sequence + 1) * cu_seqlens_stride).to(tl.int64)
    token = end - state_len + slot + tl.zeros((BLOCK_DIM,), tl.int64)
    in_dim = channel < dim
    known = in_dim & (token >= start)
    x_ptr += token * x_token + channel * x_dim
    states_ptr += sequence * states_seq + slot * states_slot + channel * states_dim
    if REVERSE:
        tl.store(x_ptr, tl.load(states_ptr, mask=known, other=0.0), mask=known)
    else:
        tl.store(states_ptr, tl.load(x_ptr, mask=known, other=0.0), mask=in_dim)


def varlen_states(states, x, cu_seqlens, back=False):
    """Fills states from the packed tokens x. back: fills x from states, where a state came from."""
    (count, dim, state_len), channels = states.shape, CHANNELS
    varlen_states_kernel[(triton.cdiv(dim, channels) * count * state_len,)](
        x, cu_seqlens, states, dim, state_len, *x.stride(), *cu_seqlens.stride(),
        *states.stride(), REVERSE=back, BLOCK_DIM=channels, num_warps=WARPS,
    )  # fmt: skip
