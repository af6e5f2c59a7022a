"""Triton engine of the mixer's decode step: convolution, state and gate in one launch.

Every program needs the convolved B and C of its group and computes them itself, d_state channels
each. The convolution's state is circular because of that: nobody may shift what others still read.
The slot that is written held the input of state_len tokens ago, and taps reach back width - 1
tokens, so state_len >= width suffices.

In place, hence not tuned: how a head is cut follows from the number of programs that fill a GPU.
Computed in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, softplus, state_step

# elements of the state that a program works on at a time, and how many of them a thread does
TILE = 2048
PER_THREAD = 16
# with so many programs, four for each of an H200's 132 multiprocessors, no head is cut: its B and C
# are convolved once
PROGRAMS = 528


@triton.jit
def _convolved(
    row_ptr, ring_ptr, w_ptr, b_ptr, channel, mask, slot, state_len,
    row_col, ring_channel, ring_slot, w_channel, w_tap,
    WIDTH: tl.constexpr, SILU: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The new input of some channels, and their convolution."""
    new = tl.load(row_ptr + channel * row_col, mask=mask, other=0.0)
    # the newest tap stands last
    w_ptr += channel * w_channel + tl.cast(w_tap, tl.int64) * (WIDTH - 1)
    total = new.to(ACC) * tl.load(w_ptr, mask=mask, other=0.0).to(ACC)
    for back in tl.static_range(1, WIDTH):
        # the slot `back` tokens before, without a division
        before = slot - back + tl.where(slot < back, state_len, 0)
        x = tl.load(ring_ptr + channel * ring_channel + before * ring_slot, mask=mask, other=0.0)
        w_ptr -= w_tap
        total += x.to(ACC) * tl.load(w_ptr, mask=mask, other=0.0).to(ACC)
    if b_ptr is not None:
        total += tl.load(b_ptr + channel, mask=mask, other=0.0).to(ACC)
    if SILU:
        total = silu(total)
    return new, total


@triton.jit
def decode_step_kernel(
    row_ptr, conv_ptr, ssm_ptr, seqlens_ptr, index_ptr, w_ptr, b_ptr, dt_bias_ptr, a_ptr, d_ptr,
    y_ptr, headdim, d_state, per_group, state_len, dt_least, dt_greatest,
    row_batch, row_col, conv_batch, conv_channel, conv_slot,
    ssm_batch, ssm_head, ssm_dim, ssm_n, w_channel, w_tap,
    WIDTH: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, STATES: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    # one program owns every parts-th ROWS channels of one head of one sequence: their state, ring
    # slots and outputs; the first of a group also owns the ring slots of its B and C
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    nheads, part, parts = tl.num_programs(1), tl.program_id(2), tl.num_programs(2)
    held = batch
    if index_ptr is not None:
        held = tl.load(index_ptr + batch).to(tl.int64)
    # a padding entry has no channels and no states
    live = held >= 0
    p_end, n_end = tl.where(live, headdim, 0), tl.where(live, d_state, 0)
    n = tl.arange(0, STATES).to(tl.int64)
    in_n = n < n_end

    dim = nheads.to(tl.int64) * headdim
    bc = nheads // per_group * d_state
    row_ptr += batch * row_batch
    x_row = row_ptr + dim * row_col
    ring = conv_ptr + held * conv_batch
    slot = (tl.load(seqlens_ptr + batch) % state_len).to(tl.int64)
    dt = tl.load(row_ptr + (2 * dim + 2 * bc + head) * row_col).to(ACC)
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + head).to(ACC)
    dt = softplus(dt)
    # not minimum and maximum: a NaN stays one
    dt = tl.where(dt < dt_least, dt_least, tl.where(dt > dt_greatest, dt_greatest, dt))
    A = -tl.exp(tl.load(a_ptr + head).to(ACC))

    of_b = dim + head // per_group * d_state + n
    new_b, B = _convolved(
        x_row, ring, w_ptr, b_ptr, of_b, in_n, slot, state_len,
        row_col, conv_channel, conv_slot, w_channel, w_tap, WIDTH, SILU, ACC,
    )  # fmt: skip
    new_c, C = _convolved(
        x_row, ring, w_ptr, b_ptr, of_b + bc, in_n, slot, state_len,
        row_col, conv_channel, conv_slot, w_channel, w_tap, WIDTH, SILU, ACC,
    )  # fmt: skip
    written = ring + slot * conv_slot
    # of all that convolved them, the first
    first = n < tl.where((part == 0) & (head % per_group == 0), n_end, 0)
    tl.store(written + of_b * conv_channel, new_b, mask=first)
    tl.store(written + (of_b + bc) * conv_channel, new_c, mask=first)

    for start in range(part * ROWS, headdim, parts * ROWS):
        p = (start + tl.arange(0, ROWS)).to(tl.int64)
        in_p = p < p_end
        tile = in_p[:, None] & in_n[None, :]
        state_at = ssm_ptr + held * ssm_batch + head * ssm_head
        state_at += p[:, None] * ssm_dim + n[None, :] * ssm_n
        state = tl.load(state_at, mask=tile, other=0.0).to(ACC)
        channel = head * headdim + p
        z = tl.load(row_ptr + channel * row_col, mask=in_p, other=0.0).to(ACC)
        new_x, x = _convolved(
            x_row, ring, w_ptr, b_ptr, channel, in_p, slot, state_len,
            row_col, conv_channel, conv_slot, w_channel, w_tap, WIDTH, SILU, ACC,
        )  # fmt: skip
        state, y = state_step(state, x, dt, A, B, C)
        if d_ptr is not None:
            y += x * tl.load(d_ptr + head).to(ACC)
        y = tl.where(live, y * silu(z), 0.0)
        tl.store(state_at, state.to(ssm_ptr.dtype.element_ty), mask=tile)
        tl.store(written + channel * conv_channel, new_x, mask=in_p)
        tl.store(y_ptr + batch * dim + channel, y.to(y_ptr.dtype.element_ty), mask=p < headdim)


def decode_step(
    zxbcdt, conv_state, ssm_state, cache_seqlens, conv1d_weight, conv1d_bias,
    dt_bias, A_log, D, dt_least, dt_greatest, activate, state_batch_indices,
):  # fmt: skip
    """y; the states in place."""
    batch, (nheads, headdim, d_state) = len(zxbcdt), ssm_state.shape[1:]
    y = zxbcdt.new_empty(batch, nheads * headdim)
    if not y.numel():
        return y
    ngroups = (len(conv1d_weight) - nheads * headdim) // (2 * d_state)
    states = triton.next_power_of_2(d_state)
    rows = min(triton.next_power_of_2(headdim), max(1, TILE // states))
    parts = min(triton.cdiv(headdim, rows), triton.cdiv(PROGRAMS, batch * nheads))
    warps = min(4, max(1, rows * states // (32 * PER_THREAD)))
    vectors = (cache_seqlens, state_batch_indices, conv1d_bias, dt_bias, A_log, D)
    vectors = (None if t is None else t.contiguous() for t in vectors)
    seqlens, index, bias, dt_bias, A_log, D = vectors
    decode_step_kernel[(batch, nheads, parts)](
        zxbcdt, conv_state, ssm_state, seqlens, index, conv1d_weight, bias, dt_bias, A_log, D,
        y, headdim, d_state, nheads // ngroups, conv_state.shape[2], dt_least, dt_greatest,
        *zxbcdt.stride(), *conv_state.stride(), *ssm_state.stride(), *conv1d_weight.stride(),
        WIDTH=conv1d_weight.shape[1], SILU=activate, ROWS=rows, STATES=states,
        ACC=accumulator(zxbcdt.dtype, ssm_state.dtype), num_warps=warps,
    )  # fmt: skip
    return y
