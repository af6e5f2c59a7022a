"""The scan's forward where a state is not finite: its tokens again, one after the other.

chunk_scan_kernel multiplies by 0 what a token must not see: later tokens of the chunk, and those of
another packed sequence. 0 times NaN or infinity is NaN. Such a value stays in the state, through
resets too, so the state that leaves a segment says whether there was one. From the first such
segment on this kernel computes the recurrence itself, where a token reads nothing but its own
input and the state.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import at_least, at_most, silu, softplus
from tvkernels.ssd.device import (
    channels,
    entering_state,
    if_given,
    is_reset,
    program_place,
    store_state,
    tiles_of,
)


@triton.jit
def _first_not_finite(finite_ptr, batch, head, block, segments, nheads, BLOCKS: tl.constexpr):
    """The first segment whose state is not finite; `segments` if there is none."""
    first = segments
    for i in range(segments):
        s = segments - 1 - i
        at = ((batch * segments + s) * nheads + head) * BLOCKS + block
        first = tl.where(tl.load(finite_ptr + at) == 0, s, first)
    return first


@triton.jit(
    do_not_specialize=[
        "seqlen", "segment_len", "segments", "subsegments", "dt_batch", "seq_idx_batch"
    ]
)  # fmt: skip
def not_finite_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dt_bias_ptr, initial_ptr, seq_idx_ptr,
    subsegment_state_ptr, subsegment_decay_ptr, out_ptr, final_ptr, finite_ptr, seqlen: tl.int64,
    segment_len: tl.int64, segments, subsegments, nheads, heads_per_group, headdim, d_state, dt_min,
    dt_max, x_batch: tl.int64, x_token, x_head, x_channel, dt_batch: tl.int64, dt_token, dt_head,
    A_head, B_batch: tl.int64, B_token, B_group, B_dstate, C_batch: tl.int64, C_token, C_group,
    C_dstate, D_head, D_channel, z_batch: tl.int64, z_token, z_head, z_channel, dt_bias_head,
    initial_batch: tl.int64, initial_head, initial_channel, initial_dstate, seq_idx_batch: tl.int64,
    seq_idx_token, out_token, out_head, BLOCK_DSTATE: tl.constexpr, TILE_WIDTHS: tl.constexpr,
    BLOCK_HEADDIM: tl.constexpr, HEADDIM_BLOCKS: tl.constexpr, SOFTPLUS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_HEADDIM channels of one head of one batch row
    block, head, _, batch = program_place(HEADDIM_BLOCKS, nheads, 1)
    first = _first_not_finite(finite_ptr, batch, head, block, segments, nheads, HEADDIM_BLOCKS)
    n, in_n = channels(0, BLOCK_DSTATE, d_state)
    p, in_p = tiles_of(block * BLOCK_HEADDIM, headdim, TILE_WIDTHS)
    x_ptr += batch * x_batch + head * x_head
    dt_ptr += batch * dt_batch + head * dt_head
    B_ptr += batch * B_batch + head // heads_per_group * B_group
    C_ptr += batch * C_batch + head // heads_per_group * C_group
    out_ptr += batch * seqlen * out_token + head * out_head
    A = tl.load(A_ptr + head * A_head).to(ACC)
    dt_bias = if_given(dt_bias_ptr, head * dt_bias_head, ACC)
    D_ptr = None if D_ptr is None else D_ptr + head * D_head
    z_ptr = None if z_ptr is None else z_ptr + batch * z_batch + head * z_head
    seq_idx_ptr = None if seq_idx_ptr is None else seq_idx_ptr + batch * seq_idx_batch
    if first < segments:
        state = entering_state(
            initial_ptr, subsegment_state_ptr, subsegment_decay_ptr, batch, head, first, segments,
            subsegments, nheads, headdim, d_state, initial_batch, initial_head, initial_channel,
            initial_dstate, n, in_n, p, in_p, BLOCK_DSTATE, TILE_WIDTHS, ACC,
        )  # fmt: skip
        begin = (first * segment_len).to(tl.int32)
        for start in range(begin, seqlen.to(tl.int32)):
            t = tl.cast(start, tl.int64)
            delta = tl.load(dt_ptr + t * dt_token).to(ACC) + dt_bias
            if SOFTPLUS:
                delta = softplus(delta)
            delta = at_most(at_least(delta, dt_min), dt_max)
            decay = tl.exp(delta * A)
            fresh = t < 0
            if seq_idx_ptr is not None:
                fresh = is_reset(seq_idx_ptr, t, seq_idx_token, t >= 0) > 0
            B = tl.load(B_ptr + t * B_token + n * B_dstate, mask=in_n, other=0.0).to(ACC)
            C = tl.load(C_ptr + t * C_token + n * C_dstate, mask=in_n, other=0.0).to(ACC)
            new = ()
            for i in tl.static_range(len(TILE_WIDTHS)):
                x = tl.load(x_ptr + t * x_token + p[i] * x_channel, mask=in_p[i], other=0.0).to(ACC)
                # a select: a product with 0 would keep what is not finite
                before = tl.where(fresh, tl.zeros_like(state[i]), state[i])
                tile = before * decay + (delta * x)[None, :] * B[:, None]
                # a select: beyond d_state the tile is infinity times 0
                y = tl.sum(tl.where(in_n[:, None], tile * C[:, None], 0.0), 0)
                if D_ptr is not None:
                    y += tl.load(D_ptr + p[i] * D_channel, mask=in_p[i], other=0.0).to(ACC) * x
                if z_ptr is not None:
                    z = tl.load(z_ptr + t * z_token + p[i] * z_channel, mask=in_p[i], other=0.0)
                    y *= silu(z.to(ACC))
                to = out_ptr + t * out_token + p[i]
                tl.store(to, y.to(out_ptr.dtype.element_ty), mask=in_p[i])
                new += (tile,)
            state = new
        final_ptr += (batch * nheads + head) * headdim * d_state
        store_state(final_ptr, state, n, p, d_state, in_n, in_p)
