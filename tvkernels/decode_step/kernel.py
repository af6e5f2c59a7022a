"""The mixer's decode step on Triton: convolution, state and gate in one launch.

Every program needs the convolved B and C of its group and computes them itself, d_state channels
each. The convolution's state is therefore a ring buffer: shifting it would race with programs that
still read it. The written slot held the input of state_len tokens ago and taps reach back width - 1
tokens, so with state_len >= width no program reads what another one writes.

It writes in place and so is not tuned; heads are divided into as many blocks as fill a GPU.
Computed in float32 (float64 for float64).
"""

import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, softplus, state_step

# elements of the state that a program, and a thread of it, holds at a time
TILE = 2048
PER_THREAD = 16
# enough programs to fill a GPU, four for each of an H200's 132 multiprocessors. More blocks per
# head would only convolve B and C more often
PROGRAMS = 528


@triton.jit
def _convolved(
    zxbcdt_ptr, ring_ptr, weight_ptr, bias_ptr, channel, mask, slot, state_len,
    zxbcdt_column, ring_channel, ring_slot, weight_channel, weight_tap,
    WIDTH: tl.constexpr, SILU: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The new input of some channels, and their convolution."""
    new = tl.load(zxbcdt_ptr + channel * zxbcdt_column, mask=mask, other=0.0)
    # the last tap multiplies the newest input
    weight_ptr += channel * weight_channel + tl.cast(weight_tap, tl.int64) * (WIDTH - 1)
    total = new.to(ACC) * tl.load(weight_ptr, mask=mask, other=0.0).to(ACC)
    for back in tl.static_range(1, WIDTH):
        # the slot of `back` tokens ago, wrapped without a division
        before = slot - back + tl.where(slot < back, state_len, 0)
        x = tl.load(ring_ptr + channel * ring_channel + before * ring_slot, mask=mask, other=0.0)
        weight_ptr -= weight_tap
        total += x.to(ACC) * tl.load(weight_ptr, mask=mask, other=0.0).to(ACC)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + channel, mask=mask, other=0.0).to(ACC)
    if SILU:
        total = silu(total)
    return new, total


@triton.jit
def decode_step_kernel(
    zxbcdt_ptr, conv_state_ptr, ssm_state_ptr, cache_seqlens_ptr, indices_ptr, weight_ptr, bias_ptr,
    dt_bias_ptr, A_log_ptr, D_ptr, y_ptr, headdim, d_state, heads_per_group, state_len, dt_min,
    dt_max, zxbcdt_batch, zxbcdt_column, conv_batch, conv_channel, conv_slot, ssm_batch, ssm_head,
    ssm_channel, ssm_dstate, weight_channel, weight_tap, WIDTH: tl.constexpr, SILU: tl.constexpr,
    BLOCK_HEADDIM: tl.constexpr, BLOCK_DSTATE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program owns every blocks-th BLOCK_HEADDIM channels of one head of one sequence: their
    # state, ring slots and outputs; the first of a group also owns the ring slots of its B and C
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    nheads, block, blocks = tl.num_programs(1), tl.program_id(2), tl.num_programs(2)
    row = batch
    if indices_ptr is not None:
        row = tl.load(indices_ptr + batch).to(tl.int64)
    # a padding entry has no live channels and states
    live = row >= 0
    p_end, n_end = tl.where(live, headdim, 0), tl.where(live, d_state, 0)
    n = tl.arange(0, BLOCK_DSTATE).to(tl.int64)
    in_n = n < n_end

    dim = nheads.to(tl.int64) * headdim
    bc = nheads // heads_per_group * d_state
    zxbcdt_ptr += batch * zxbcdt_batch
    xbc_ptr = zxbcdt_ptr + dim * zxbcdt_column
    ring_ptr = conv_state_ptr + row * conv_batch
    slot = (tl.load(cache_seqlens_ptr + batch) % state_len).to(tl.int64)
    dt = tl.load(zxbcdt_ptr + (2 * dim + 2 * bc + head) * zxbcdt_column).to(ACC)
    if dt_bias_ptr is not None:
        dt += tl.load(dt_bias_ptr + head).to(ACC)
    dt = softplus(dt)
    # not tl.minimum and tl.maximum: they would drop a NaN
    dt = tl.where(dt < dt_min, dt_min, tl.where(dt > dt_max, dt_max, dt))
    A = -tl.exp(tl.load(A_log_ptr + head).to(ACC))

    of_b = dim + head // heads_per_group * d_state + n
    new_b, B = _convolved(
        xbc_ptr, ring_ptr, weight_ptr, bias_ptr, of_b, in_n, slot, state_len,
        zxbcdt_column, conv_channel, conv_slot, weight_channel, weight_tap, WIDTH, SILU, ACC,
    )  # fmt: skip
    new_c, C = _convolved(
        xbc_ptr, ring_ptr, weight_ptr, bias_ptr, of_b + bc, in_n, slot, state_len,
        zxbcdt_column, conv_channel, conv_slot, weight_channel, weight_tap, WIDTH, SILU, ACC,
    )  # fmt: skip
    written = ring_ptr + slot * conv_slot
    # Every program of a group recomputes B and C; only the first stores them in the ring buffer
    first = n < tl.where((block == 0) & (head % heads_per_group == 0), n_end, 0)
    tl.store(written + of_b * conv_channel, new_b, mask=first)
    tl.store(written + (of_b + bc) * conv_channel, new_c, mask=first)

    for start in range(block * BLOCK_HEADDIM, headdim, blocks * BLOCK_HEADDIM):
        p = (start + tl.arange(0, BLOCK_HEADDIM)).to(tl.int64)
        in_p = p < p_end
        mask = in_p[:, None] & in_n[None, :]
        state_at = ssm_state_ptr + row * ssm_batch + head * ssm_head
        state_at += p[:, None] * ssm_channel + n[None, :] * ssm_dstate
        state = tl.load(state_at, mask=mask, other=0.0).to(ACC)
        channel = head * headdim + p
        z = tl.load(zxbcdt_ptr + channel * zxbcdt_column, mask=in_p, other=0.0).to(ACC)
        new_x, x = _convolved(
            xbc_ptr, ring_ptr, weight_ptr, bias_ptr, channel, in_p, slot, state_len,
            zxbcdt_column, conv_channel, conv_slot, weight_channel, weight_tap, WIDTH, SILU, ACC,
        )  # fmt: skip
        state, y = state_step(state, x, dt, A, B, C)
        if D_ptr is not None:
            y += x * tl.load(D_ptr + head).to(ACC)
        y = tl.where(live, y * silu(z), 0.0)
        tl.store(state_at, state.to(ssm_state_ptr.dtype.element_ty), mask=mask)
        tl.store(written + channel * conv_channel, new_x, mask=in_p)
        tl.store(y_ptr + batch * dim + channel, y.to(y_ptr.dtype.element_ty), mask=p < headdim)


def decode_step(
    zxbcdt, conv_state, ssm_state, cache_seqlens, conv1d_weight, conv1d_bias,
    dt_bias, A_log, D, dt_min, dt_max, activate, state_batch_indices,
):  # fmt: skip
    """y; updates the states in place."""
    batch, (nheads, headdim, d_state) = len(zxbcdt), ssm_state.shape[1:]
    y = zxbcdt.new_empty(batch, nheads * headdim)
    if not y.numel():
        return y
    ngroups = (len(conv1d_weight) - nheads * headdim) // (2 * d_state)
    block_dstate = triton.next_power_of_2(d_state)
    block_headdim = min(triton.next_power_of_2(headdim), max(1, TILE // block_dstate))
    blocks = min(triton.cdiv(headdim, block_headdim), triton.cdiv(PROGRAMS, batch * nheads))
    warps = min(4, max(1, block_headdim * block_dstate // (32 * PER_THREAD)))
    vectors = (cache_seqlens, state_batch_indices, conv1d_bias, dt_bias, A_log, D)
    vectors = (None if t is None else t.contiguous() for t in vectors)
    seqlens, index, bias, dt_bias, A_log, D = vectors
    decode_step_kernel[(batch, nheads, blocks)](
        zxbcdt, conv_state, ssm_state, seqlens, index, conv1d_weight, bias, dt_bias, A_log, D,
        y, headdim, d_state, nheads // ngroups, conv_state.shape[2], dt_min, dt_max,
        *zxbcdt.stride(), *conv_state.stride(), *ssm_state.stride(), *conv1d_weight.stride(),
        WIDTH=conv1d_weight.shape[1], SILU=activate, BLOCK_HEADDIM=block_headdim,
        BLOCK_DSTATE=block_dstate, ACC=accumulator(zxbcdt.dtype, ssm_state.dtype), num_warps=warps,
    )  # fmt: skip
    return y
