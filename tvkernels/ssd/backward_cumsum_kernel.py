"""chunk_cumsum in the backward: delta and its summed log-decays again, and their gradients."""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import LOG2_E, at_least, at_most, sigmoid, softplus
from tvkernels.ssd.backward_device import bounds_of, is_sound, is_stored, spoil
from tvkernels.ssd.device import lowest_log_decay

# heads of a program
BLOCK_HEADS = 16


@triton.jit
def _begin(bounds_ptr, seqlen, chunks, nheads, CHUNK_SIZE: tl.constexpr, BLOCK_HEADS: tl.constexpr):
    """What a program owns, BLOCK_HEADS heads of one chunk: the heads, the batch index, the chunk,
    its first token and the one behind its last, its tokens."""
    blocks = tl.cdiv(nheads, BLOCK_HEADS)
    head = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    place = (tl.program_id(0) // blocks).to(tl.int64)
    batch, chunk = place // chunks, place % chunks
    start, stop = bounds_of(bounds_ptr, chunk, seqlen, CHUNK_SIZE)
    t = start + tl.arange(0, CHUNK_SIZE).to(tl.int64)
    return head, batch, chunk, start, stop, t


@triton.jit
def _step_sizes(
    dt_ptr, dt_bias_ptr, at, head, mask, live, SOFTPLUS: tl.constexpr, ACC: tl.constexpr
):
    """dt + dt_bias, and its softplus if SOFTPLUS."""
    raw = tl.load(dt_ptr + at, mask=mask, other=0.0).to(ACC)
    if dt_bias_ptr is not None:
        raw += tl.load(dt_bias_ptr + head, mask=live, other=0.0).to(ACC)[:, None]
    delta = raw
    if SOFTPLUS:
        delta = softplus(raw)
    return raw, delta


@triton.jit(do_not_specialize=["seqlen", "chunks", "dt_batch"])
def scan_backward_cumsum_kernel(
    dt_ptr, A_ptr, dt_bias_ptr, delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr, seqlen, pitch,
    chunks, nheads, low_offset: tl.int64, dt_min, dt_max, dt_batch: tl.int64, dt_token, dt_head,
    A_head, CHUNK_SIZE: tl.constexpr, BLOCK_HEADS: tl.constexpr, SOFTPLUS: tl.constexpr,
    TWO_FLOATS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_HEADS heads of one chunk
    head, batch, _, start, stop, t = _begin(
        bounds_ptr, seqlen, chunks, nheads, CHUNK_SIZE, BLOCK_HEADS
    )
    if resets_ptr is not None:
        resets_ptr += batch * seqlen
    mask = (head < nheads)[:, None] & is_sound(resets_ptr, t, stop)[None, :]
    at = batch * dt_batch + (head * dt_head)[:, None] + (t * dt_token)[None, :]
    _, delta = _step_sizes(dt_ptr, dt_bias_ptr, at, head, mask, head < nheads, SOFTPLUS, ACC)
    delta = tl.where(mask, at_most(at_least(delta, dt_min), dt_max), 0.0)
    A = tl.load(A_ptr + head * A_head, mask=head < nheads, other=0.0)
    SUM: tl.constexpr = tl.float64 if TWO_FLOATS else ACC
    LOWEST: tl.constexpr = lowest_log_decay(ACC)
    log_decay = at_least(delta.to(SUM) * A.to(SUM)[:, None] * LOG2_E, LOWEST)
    cumsum = tl.cumsum(tl.where(mask, log_decay, 0.0), 1)
    to = ((batch * nheads + head) * pitch)[:, None] + t[None, :]
    # also beyond the last token, up to the chunk's end: delta is 0 there and cumsum does not change
    stored = is_stored(bounds_ptr, tl.arange(0, CHUNK_SIZE), start, stop, CHUNK_SIZE)
    mask = (head < nheads)[:, None] & stored[None, :]
    tl.store(delta_ptr + to, delta, mask=mask)
    tl.store(cumsum_ptr + to, cumsum.to(ACC), mask=mask)
    if TWO_FLOATS:
        low = (cumsum - cumsum.to(ACC).to(SUM)).to(ACC)
        tl.store(cumsum_ptr + low_offset + to, low, mask=mask)


@triton.jit(do_not_specialize=["seqlen", "chunks", "dt_batch"])
def scan_backward_ddt_kernel(
    dt_ptr, A_ptr, dt_bias_ptr, delta_ptr, paths_in_ptr, paths_out_ptr, ddelta_self_ptr,
    paths_inside_ptr, ddelta_later_ptr, paths_through_ptr, resets_ptr, bounds_ptr, ddt_ptr, dA_ptr,
    ddt_bias_ptr, seqlen, pitch, chunks, nheads, query_block_offset: tl.int64, dt_min, dt_max,
    dt_batch: tl.int64, dt_token, dt_head, A_head, CHUNK_SIZE: tl.constexpr,
    QUERY_BLOCKS: tl.constexpr, BLOCK_HEADS: tl.constexpr, SOFTPLUS: tl.constexpr,
    TWO_FLOATS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_HEADS heads of one chunk, and their part of dA and ddt_bias
    head, batch, chunk, start, stop, t = _begin(
        bounds_ptr, seqlen, chunks, nheads, CHUNK_SIZE, BLOCK_HEADS
    )
    live = head < nheads
    mask = live[:, None] & (t < stop)[None, :]
    at = ((batch * nheads + head) * pitch)[:, None] + t[None, :]
    delta = tl.load(delta_ptr + at, mask=mask, other=0.0)
    later = tl.zeros((BLOCK_HEADS, CHUNK_SIZE), ACC)
    for block in tl.static_range(QUERY_BLOCKS):
        later += tl.load(ddelta_later_ptr + block * query_block_offset + at, mask=mask, other=0.0)
    inside = tl.load(paths_inside_ptr + at, mask=mask, other=0.0)
    if not TWO_FLOATS:
        # Gradient of the log-decay: paths ending at t minus paths starting at t. Both sums are made
        # of the same float32 terms, so what they share cancels
        inside = tl.cumsum(inside - delta * later, 1, reverse=True)
    entering = tl.load(paths_in_ptr + at, mask=mask, other=0.0)
    # Exclusive prefix sum: load shifted by one instead of subtracting the last term, which would
    # lose precision
    shifted = mask & (t > start)[None, :]
    leaving = tl.load(paths_out_ptr + at - 1, mask=shifted, other=0.0)
    leaving *= tl.load(delta_ptr + at - 1, mask=shifted, other=0.0)
    number = (batch * chunks + chunk) * nheads + head
    through = tl.load(paths_through_ptr + number, mask=live, other=0.0)
    dlog_decay = inside + tl.cumsum(entering, 1, reverse=True) + tl.cumsum(leaving, 1)
    dlog_decay = tl.where(mask, dlog_decay + through[:, None], 0.0)
    A = tl.load(A_ptr + head * A_head, mask=live, other=0.0).to(ACC)
    ddelta = tl.load(ddelta_self_ptr + at, mask=mask, other=0.0) + later
    ddelta = ddelta + tl.load(paths_out_ptr + at, mask=mask, other=0.0) + A[:, None] * dlog_decay
    dt_at = batch * dt_batch + (head * dt_head)[:, None] + (t * dt_token)[None, :]
    if resets_ptr is not None:
        resets_ptr += batch * seqlen
    sound = is_sound(resets_ptr, t, stop)[None, :]
    loaded = live[:, None] & sound
    raw, unclamped = _step_sizes(dt_ptr, dt_bias_ptr, dt_at, head, loaded, live, SOFTPLUS, ACC)
    # negated, so that NaN is passed on
    outside = (unclamped < dt_min) | (unclamped > dt_max)
    ddt = tl.where(loaded & ~outside, ddelta, 0.0)
    if SOFTPLUS:
        ddt *= sigmoid(raw)
    to = ((batch * seqlen + t) * nheads)[None, :] + head[:, None]
    tl.store(dA_ptr + number, tl.sum(dlog_decay * delta, 1), mask=live)
    tl.store(ddt_bias_ptr + number, tl.sum(ddt, 1), mask=live)
    ddt = spoil(ddt, sound, resets_ptr)
    tl.store(ddt_ptr + to, ddt.to(ddt_ptr.dtype.element_ty), mask=mask)


def chunk_cumsum(plan, dt, A, dt_bias, dt_softplus, dt_limit):
    """Fills plan.delta and plan.cumsum."""
    batch, seqlen, nheads = dt.shape
    if not batch * seqlen:
        return
    scan_backward_cumsum_kernel[(triton.cdiv(nheads, BLOCK_HEADS) * plan.chunks * batch,)](
        dt, A, dt_bias, plan.delta, plan.cumsum, plan.resets, plan.bounds, seqlen, plan.pitch,
        plan.chunks, nheads, plan.delta.numel(), *dt_limit, *dt.stride(), *A.stride(),
        CHUNK_SIZE=plan.chunk_size, BLOCK_HEADS=BLOCK_HEADS, SOFTPLUS=dt_softplus,
        TWO_FLOATS=plan.two_floats, ACC=plan.acc, num_warps=4,
    )  # fmt: skip


def chunk_cumsum_backward(plan, dt, A, dt_bias, dt_softplus, dt_limit, sums):
    """ddt, and dA and ddt_bias in the dtype of sums."""
    batch, seqlen, nheads = dt.shape
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    dA = torch.empty(batch, plan.chunks, nheads, dtype=plan.dtype, device=dt.device)
    ddt_bias = torch.empty_like(dA)
    if batch and seqlen:
        scan_backward_ddt_kernel[(triton.cdiv(nheads, BLOCK_HEADS) * plan.chunks * batch,)](
            dt, A, dt_bias, plan.delta, sums.paths_in, sums.paths_out, sums.ddelta_self,
            sums.paths_inside, sums.ddelta_later, sums.paths_through, plan.resets, plan.bounds, ddt,
            dA, ddt_bias, seqlen, plan.pitch, plan.chunks, nheads, plan.delta.numel(), *dt_limit,
            *dt.stride(), *A.stride(), CHUNK_SIZE=plan.chunk_size,
            QUERY_BLOCKS=plan.chunk_size // plan.block, BLOCK_HEADS=BLOCK_HEADS,
            SOFTPLUS=dt_softplus, TWO_FLOATS=plan.two_floats, ACC=plan.acc, num_warps=4,
        )  # fmt: skip
    return ddt, dA.sum((0, 1)), ddt_bias.sum((0, 1))
