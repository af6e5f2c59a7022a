"""The replayed decode steps on Triton: the state is read once, and written when it is due.

A program owns one head of one sequence and holds BLOCK_DIM channels of its state at a time. It
replays the pending tokens on them in registers, with the arithmetic and the order of one step after
another, and goes on with the new tokens. So outputs and states do not depend on when the state was
written, where the state has the accumulator's dtype.

The pending tokens lie in a ring of 2 * capacity slots. A launch reads at most `capacity` of them
and writes at most `capacity` others, so no program writes a slot that another one reads. `written`
is kept per head, because each program advances the value that it alone reads.

It writes in place and so is not tuned. Sums are float32 (float64 for float64).
"""

import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, softplus, strides

# elements of the state that a program, and a thread of it, holds at a time
TILE, PER_THREAD = 2048, 16


@triton.jit
def _advanced(state, x, step, decay, B):
    """The (channels, d_state) tile one token further, rounded as in `core.tl.state_step`."""
    return state * decay + (step * x[:, None]) * B[None, :]


@triton.jit
def _pending(written_ptr, end, most, live):
    """Where the pending tokens begin, and whether they are more than `most`: due to be written."""
    begin = tl.where(live, tl.load(written_ptr, mask=live, other=0), end)
    # all warps must read `written` before one of them stores it
    tl.debug_barrier()
    full = live & (end - begin > most)
    tl.store(written_ptr, end, mask=full)
    return begin, full


@triton.jit
def _replayed(
    state, begin, end, slots, x_ptr, dt_ptr, B_ptr, in_p, in_n, x_slot, dt_slot, dt_value, B_slot,
    ACC: tl.constexpr,
):  # fmt: skip
    """The tile behind the pending tokens begin .. end, which start in slot begin % slots."""
    slot = begin % slots
    for _ in range(begin, end):
        at = slot.to(tl.int64)
        x = tl.load(x_ptr + at * x_slot, mask=in_p, other=0.0).to(ACC)
        B = tl.load(B_ptr + at * B_slot, mask=in_n, other=0.0).to(ACC)
        step = tl.load(dt_ptr + at * dt_slot).to(ACC)
        decay = tl.load(dt_ptr + at * dt_slot + dt_value).to(ACC)
        state = _advanced(state, x, step, decay, B)
        slot = tl.where(slot + 1 == slots, 0, slot + 1)
    return state


@triton.jit
def _step_size(dt, dt_bias_ptr, head, dt_min, dt_max, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    dt = dt.to(ACC)
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + head).to(ACC)
    if SOFTPLUS:
        dt = softplus(dt)
    # not tl.minimum and tl.maximum: they would drop a NaN
    return tl.where(dt < dt_min, dt_min, tl.where(dt > dt_max, dt_max, dt))


@triton.jit
def replay_kernel(
    state_ptr, held_x_ptr, held_dt_ptr, held_B_ptr, written_ptr, seqlens_ptr, x_ptr, dt_ptr, A_ptr,
    B_ptr, C_ptr, D_ptr, z_ptr, dt_bias_ptr, indices_ptr, out_ptr,
    seqlen, slots, nheads, dim, dstate, heads_per_group, dt_min, dt_max,
    state_row, state_head, state_dim, state_dstate,
    held_x_row, held_x_slot, held_x_head, held_x_dim,
    held_dt_row, held_dt_slot, held_dt_head, held_dt_value,
    held_B_row, held_B_slot, held_B_group, held_B_dstate, written_row, written_head,
    x_batch, x_token, x_head, x_dim, dt_batch, dt_token, dt_head,
    B_batch, B_token, B_group, B_dstate, C_batch, C_token, C_group, C_dstate,
    z_batch, z_token, z_head, z_dim,
    SOFTPLUS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_DSTATE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # neighbours are the heads of a sequence, which share B and C
    head = (tl.program_id(0) % nheads).to(tl.int64)
    group = head // heads_per_group
    batch = (tl.program_id(0) // nheads).to(tl.int64)
    row = batch
    if indices_ptr is not None:
        row = tl.load(indices_ptr + batch).to(tl.int64)
    # a padding entry (negative) has no pending tokens, no live channels and no live states
    live = row >= 0
    n = tl.arange(0, BLOCK_DSTATE).to(tl.int64)
    in_n = n < tl.where(live, dstate, 0)

    written_ptr += row * written_row + head * written_head
    end = tl.load(seqlens_ptr + batch).to(tl.int32)
    # without new tokens whatever is pending is written
    begin, full = _pending(written_ptr, end, 0 if x_ptr is None else slots // 2 - seqlen, live)
    state_ptr += row * state_row + head * state_head
    held_x_ptr += row * held_x_row + head * held_x_head
    held_dt_ptr += row * held_dt_row + head * held_dt_head
    held_B_ptr += row * held_B_row + group * held_B_group + n * held_B_dstate
    for start in range(0, dim, BLOCK_DIM):
        p = (start + tl.arange(0, BLOCK_DIM)).to(tl.int64)
        in_p = p < tl.where(live, dim, 0)
        state_at = state_ptr + p[:, None] * state_dim + n[None, :] * state_dstate
        held_x_at = held_x_ptr + p * held_x_dim
        state = tl.load(state_at, mask=in_p[:, None] & in_n[None, :], other=0.0).to(ACC)
        state = _replayed(
            state, begin, end, slots, held_x_at, held_dt_ptr, held_B_ptr, in_p, in_n,
            held_x_slot, held_dt_slot, held_dt_value, held_B_slot, ACC,
        )  # fmt: skip
        due = (p < tl.where(full, dim, 0))[:, None] & in_n[None, :]
        tl.store(state_at, state.to(state_ptr.dtype.element_ty), mask=due)
        if x_ptr is not None:
            # B and the step are the same in every block of channels; B is also that of other heads
            once = tl.where(live, 1, 0) > start
            in_B = n < tl.where(once & (head % heads_per_group == 0), dstate, 0)
            for token in range(seqlen):
                i = tl.cast(token, tl.int64)
                dt = tl.load(dt_ptr + batch * dt_batch + i * dt_token + head * dt_head)
                dt = _step_size(dt, dt_bias_ptr, head, dt_min, dt_max, SOFTPLUS, ACC)
                decay = tl.exp(dt * tl.load(A_ptr + head).to(ACC))
                x_at = x_ptr + batch * x_batch + i * x_token + head * x_head + p * x_dim
                B_at = B_ptr + batch * B_batch + i * B_token + group * B_group + n * B_dstate
                C_at = C_ptr + batch * C_batch + i * C_token + group * C_group + n * C_dstate
                new_x = tl.load(x_at, mask=in_p, other=0.0)
                new_B = tl.load(B_at, mask=in_n, other=0.0)
                C = tl.load(C_at, mask=in_n, other=0.0).to(ACC)
                state = _advanced(state, new_x.to(ACC), dt, decay, new_B.to(ACC))
                y = tl.sum(state * C[None, :], 1)
                if D_ptr is not None:
                    y += new_x.to(ACC) * tl.load(D_ptr + head).to(ACC)
                if z_ptr is not None:
                    z_at = z_ptr + batch * z_batch + i * z_token + head * z_head + p * z_dim
                    y *= silu(tl.load(z_at, mask=in_p, other=0.0).to(ACC))
                out_at = out_ptr + ((batch * seqlen + i) * nheads + head) * dim + p
                tl.store(out_at, tl.where(live, y, 0.0).to(out_ptr.dtype.element_ty), mask=p < dim)
                slot = ((end + token) % slots).to(tl.int64)
                tl.store(held_x_at + slot * held_x_slot, new_x, mask=in_p)
                tl.store(held_dt_ptr + slot * held_dt_slot, dt, mask=once)
                tl.store(held_dt_ptr + slot * held_dt_slot + held_dt_value, decay, mask=once)
                tl.store(held_B_ptr + slot * held_B_slot, new_B, mask=in_B)


def replay(
    state, held_x, held_dt, held_B, written, seqlens, x, dt, A, B, C, D, z, dt_bias, dt_softplus,
    dt_min, dt_max, indices, out,
):  # fmt: skip
    """Write `out` and the states in place; without x, only the states."""
    batch, (nheads, dim, dstate) = len(seqlens), state.shape[1:]
    if not batch * nheads * dim or (x is not None and not x.shape[1]):
        return
    block_dstate = triton.next_power_of_2(max(1, dstate))
    block_dim = min(triton.next_power_of_2(dim), max(1, TILE // block_dstate))
    warps = max(1, min(8, block_dim * block_dstate // (32 * PER_THREAD)))
    vectors = (seqlens, A, D, dt_bias, indices)
    seqlens, A, D, dt_bias, indices = (None if t is None else t.contiguous() for t in vectors)
    replay_kernel[(batch * nheads,)](
        state, held_x, held_dt, held_B, written, seqlens, x, dt, A, B, C, D, z, dt_bias, indices,
        out, 0 if x is None else x.shape[1], held_x.shape[1], nheads, dim, dstate,
        nheads // held_B.shape[2], dt_min, dt_max,
        *state.stride(), *held_x.stride(), *held_dt.stride(), *held_B.stride(), *written.stride(),
        *strides(x, 4), *strides(dt, 3), *strides(B, 4), *strides(C, 4), *strides(z, 4),
        SOFTPLUS=dt_softplus, BLOCK_DIM=block_dim, BLOCK_DSTATE=block_dstate,
        ACC=accumulator(state.dtype, held_x.dtype), num_warps=warps,
    )  # fmt: skip
