"""Backward of the chunked scan on Triton, from the inputs alone: five launches, no atomics.

    steps   delta, and its log2-decays summed from the start of each chunk
    walk    the states before the chunks, the gradients behind them     (backward_walk_kernel)
    roles   dx, and all sums within a chunk                             (backward_roles_kernel)
    join    dB and dC: what went through the states, plus what stayed in the chunk
    finish  the gradient of the log-decay from plain sums of its own terms, then ddt, dA, ddt_bias

A gate z has two more, `gate` before the walk and `dz` behind the roles: what the others take for
the gradient is G = dout silu(z), which is kept where dz will be.

The log-decay l_t carries every path from a token before t to one at or behind it. Paths are split
by where they begin and end: both outside the chunk (`through`), into it (q), out of it (r), inside
it (`path`). Each is a sum of its own terms over at most a chunk, none a difference of large sums.

In memory for a while, per token of 128 heads of 80, 8 groups, d_state 128, at 16 bit: states and
gradients 41 kB, dB and dC in float32 8.2, vectors 4, pairs 2; with a gate no more, if z is of the
dtype of x (else G). Nothing is kept from the forward.

On 132 processors, one program on each (registers allow no more): the walk is 64 pairs of heads in
two directions, 128 programs at batch 1, 1,024 at batch 8, each through all chunks of 128 tokens;
the roles are 5 (of 8 groups) for every chunk, 640 programs at 2k, 10,240 at 32k. So what is short
or narrow waits for the walk: 16 steps at 2k tokens, one after the other.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, sigmoid, silu, softplus
from tvkernels.core.tune import tuned
from tvkernels.ssd.backward_roles_kernel import gate_role, roles
from tvkernels.ssd.backward_tiles_kernel import (
    bounds_of,
    configs,
    held,
    load_rows,
    product,
    reached,
)
from tvkernels.ssd.backward_walk_kernel import walk

LOG2_E = tl.constexpr(1.4426950408889634)
# heads of a program of `steps` and `finish`
HEADS = 16
CHUNK = 128
BLOCK = 64


@dataclass
class Plan:
    """How the tokens are cut, and what the launches share."""

    T: int
    block: int
    N: int
    chunks: int
    ends: torch.Tensor | None
    """(chunks + 1,) where the chunks begin and end, if not every T tokens"""
    segment: torch.Tensor | None
    """(batch, seqlen) int32: resets of the state up to each token"""
    operands: torch.dtype
    """of the matrix products"""
    dtype: torch.dtype
    """of sums"""
    step: torch.Tensor
    """as all vectors (batch, nheads, pitch): the length rounded up to whole chunks"""
    log: torch.Tensor

    @property
    def acc(self):
        return accumulator(self.dtype)

    @property
    def pitch(self):
        return self.step.shape[2]

    @property
    def precise(self):
        return self.operands == torch.float32


@triton.jit
def _step_sizes(dt_ptr, bias_ptr, at, head, mask, live, SOFTPLUS: tl.constexpr, ACC: tl.constexpr):
    """dt + dt_bias, and its softplus."""
    raw = tl.load(dt_ptr + at, mask=mask, other=0.0).to(ACC)
    if bias_ptr is not None:
        raw += tl.load(bias_ptr + head, mask=live, other=0.0).to(ACC)[:, None]
    size = raw
    if SOFTPLUS:
        size = softplus(raw)
    return raw, size


@triton.jit(do_not_specialize=["seqlen", "chunks", "dt_batch"])
def scan_backward_steps_kernel(
    dt_ptr, a_ptr, bias_ptr, step_ptr, log_ptr, ends_ptr, seqlen, pitch, chunks, heads,
    low_by: tl.int64, least, most, dt_batch: tl.int64, dt_token, dt_head, a_head,
    T: tl.constexpr, HEADS: tl.constexpr, SOFTPLUS: tl.constexpr, PRECISE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    # one program owns HEADS heads of one chunk
    blocks = tl.cdiv(heads, HEADS)
    head = (tl.program_id(0) % blocks).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    place = (tl.program_id(0) // blocks).to(tl.int64)
    batch, chunk = place // chunks, place % chunks
    start, stop = bounds_of(ends_ptr, chunk, seqlen, T)
    t = start + tl.arange(0, T).to(tl.int64)
    mask = (head < heads)[:, None] & (t < stop)[None, :]
    at = batch * dt_batch + (head * dt_head)[:, None] + (t * dt_token)[None, :]
    _, size = _step_sizes(dt_ptr, bias_ptr, at, head, mask, head < heads, SOFTPLUS, ACC)
    step = tl.where(mask, tl.minimum(tl.maximum(size, least), most), 0.0)
    a = tl.load(a_ptr + head * a_head, mask=head < heads, other=0.0)
    SUM: tl.constexpr = tl.float64 if PRECISE else ACC
    # decays that are 0 of themselves. Taking no less keeps sums of log-decays, and so their
    # rounding, small where dt is huge
    LEAST: tl.constexpr = -1100.0 if tl.float64 == ACC else -160.0
    log = tl.maximum(step.to(SUM) * a.to(SUM)[:, None] * LOG2_E, LEAST)
    log = tl.cumsum(tl.where(mask, log, 0.0), 1)
    to = ((batch * heads + head) * pitch)[:, None] + t[None, :]
    # beyond the last token too: steps of 0, and what is left there
    mask = (head < heads)[:, None] & held(ends_ptr, tl.arange(0, T), start, stop, T)[None, :]
    tl.store(step_ptr + to, step, mask=mask)
    tl.store(log_ptr + to, log.to(ACC), mask=mask)
    if PRECISE:
        tl.store(log_ptr + low_by + to, (log - log.to(ACC).to(SUM)).to(ACC), mask=mask)


@triton.jit(do_not_specialize=["rows", "seqlen"])
def scan_backward_gate_kernel(
    z_ptr, dout_ptr, g_ptr, rows: tl.int64, seqlen, heads,
    z_batch: tl.int64, z_token, z_head, z_channel, dout_batch: tl.int64, dout_token,
    dout_head, dout_channel,
    HEADDIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program owns ROWS heads of tokens
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head, token = (row % heads)[:, None], (row // heads % seqlen)[:, None]
    batch = (row // heads // seqlen)[:, None]
    column = tl.arange(0, WIDTH).to(tl.int64)[None, :]
    mask = (row < rows)[:, None] & (column < HEADDIM)
    at = batch * z_batch + token * z_token + head * z_head + column * z_channel
    z = tl.load(z_ptr + at, mask=mask, other=0.0).to(ACC)
    at = batch * dout_batch + token * dout_token + head * dout_head + column * dout_channel
    g = silu(z) * tl.load(dout_ptr + at, mask=mask, other=0.0).to(ACC)
    tl.store(g_ptr + row[:, None] * HEADDIM + column, g.to(g_ptr.dtype.element_ty), mask=mask)


JOIN_CONFIGS = configs({"default": ((8, 2),), "gfx942": ((8, 2), (4, 2))})


@tuned(JOIN_CONFIGS, key=["D_STATE", "T"])
@triton.jit(do_not_specialize=["seqlen", "chunks"])
def scan_backward_join_kernel(
    pairs_ptr, b_ptr, c_ptr, sum_b_ptr, sum_c_ptr, db_ptr, dc_ptr, seg_ptr, ends_ptr,
    seqlen, chunks, groups,
    b_batch: tl.int64, b_token, b_group, b_entry, c_batch: tl.int64, c_token, c_group, c_entry,
    D_STATE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # one program owns dB and dC of one group of one chunk
    OP: tl.constexpr = pairs_ptr.dtype.element_ty
    place = tl.program_id(0).to(tl.int64)
    group, chunk, batch = place % groups, place // groups % chunks, place // groups // chunks
    start, stop = bounds_of(ends_ptr, chunk, seqlen, T)
    t = start + tl.arange(0, T).to(tl.int64)
    n = tl.arange(0, N).to(tl.int64)
    mask = (t < stop)[:, None] & (n < D_STATE)[None, :]
    at = (((batch * seqlen + t) * groups + group) * D_STATE)[:, None] + n[None, :]
    key, query = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    if seg_ptr is not None:
        seg_ptr += batch * seqlen
    pairs = tl.load(pairs_ptr + place * T * T + key * T + query)
    pairs = tl.where(reached(seg_ptr, start, stop, key, query), pairs, 0.0).to(OP)
    c_ptr += batch * c_batch + group * c_group
    total = tl.load(sum_b_ptr + at, mask=mask, other=0.0)
    c = load_rows(c_ptr, t, stop, c_token, c_entry, D_STATE, N, OP)
    total = product(pairs, c, total, DOT)
    tl.store(db_ptr + at, total.to(db_ptr.dtype.element_ty), mask=mask)
    b_ptr += batch * b_batch + group * b_group
    total = tl.load(sum_c_ptr + at, mask=mask, other=0.0)
    b = load_rows(b_ptr, t, stop, b_token, b_entry, D_STATE, N, OP)
    total = product(tl.trans(pairs), b, total, DOT)
    tl.store(dc_ptr + at, total.to(dc_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seqlen", "chunks", "dt_batch"])
def scan_backward_finish_kernel(
    dt_ptr, a_ptr, bias_ptr, step_ptr, q_ptr, r_ptr, own_ptr, path_ptr, after_ptr, through_ptr,
    ends_ptr, ddt_ptr, da_ptr, dbias_ptr, seqlen, pitch, chunks, heads,
    slots_by: tl.int64, least, most, dt_batch: tl.int64, dt_token, dt_head, a_head,
    T: tl.constexpr, BLOCKS: tl.constexpr, HEADS: tl.constexpr, SOFTPLUS: tl.constexpr,
    PRECISE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    # one program owns HEADS heads of one chunk, and their part of dA and ddt_bias
    blocks = tl.cdiv(heads, HEADS)
    head = (tl.program_id(0) % blocks).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    live = head < heads
    place = (tl.program_id(0) // blocks).to(tl.int64)
    batch, chunk = place // chunks, place % chunks
    start, stop = bounds_of(ends_ptr, chunk, seqlen, T)
    t = start + tl.arange(0, T).to(tl.int64)
    mask = live[:, None] & (t < stop)[None, :]
    at = ((batch * heads + head) * pitch)[:, None] + t[None, :]
    step = tl.load(step_ptr + at, mask=mask, other=0.0)
    after = tl.zeros((HEADS, T), ACC)
    for block in tl.static_range(BLOCKS):
        after += tl.load(after_ptr + block * slots_by + at, mask=mask, other=0.0)
    path = tl.load(path_ptr + at, mask=mask, other=0.0)
    if not PRECISE:
        # of the same float32 terms, those that end here less those that begin here
        path = tl.cumsum(path - step * after, 1, reverse=True)
    q = tl.load(q_ptr + at, mask=mask, other=0.0)
    # sums of the tokens before: of what is shifted by one, since a sum less its last term rounds
    shifted = mask & (t > start)[None, :]
    left = tl.load(r_ptr + at - 1, mask=shifted, other=0.0)
    left *= tl.load(step_ptr + at - 1, mask=shifted, other=0.0)
    number = (batch * chunks + chunk) * heads + head
    through = tl.load(through_ptr + number, mask=live, other=0.0)
    dlog = path + tl.cumsum(q, 1, reverse=True) + tl.cumsum(left, 1) + through[:, None]
    dlog = tl.where(mask, dlog, 0.0)
    a = tl.load(a_ptr + head * a_head, mask=live, other=0.0).to(ACC)
    own = tl.load(own_ptr + at, mask=mask, other=0.0)
    dstep = own + after + tl.load(r_ptr + at, mask=mask, other=0.0) + a[:, None] * dlog
    dt_at = batch * dt_batch + (head * dt_head)[:, None] + (t * dt_token)[None, :]
    raw, size = _step_sizes(dt_ptr, bias_ptr, dt_at, head, mask, live, SOFTPLUS, ACC)
    ddt = tl.where(mask & (size >= least) & (size <= most), dstep, 0.0)
    if SOFTPLUS:
        ddt *= sigmoid(raw)
    to = ((batch * seqlen + t) * heads)[None, :] + head[:, None]
    tl.store(ddt_ptr + to, ddt.to(ddt_ptr.dtype.element_ty), mask=mask)
    tl.store(da_ptr + number, tl.sum(dlog * step, 1), mask=live)
    tl.store(dbias_ptr + number, tl.sum(ddt, 1), mask=live)


def scan_backward(
    x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit,
    dout, dfinal_states, dvarlen_states,
):  # fmt: skip
    """Gradients of x, dt, A, B, C, D, z, dt_bias and initial_states; None where one is not given.

    Args: as `mamba_chunk_scan_combined`, then the gradients of its results; of the states' None
        where they were not asked for.
    """
    how = (dt_softplus, dt_limit)
    if not x.shape[1]:
        # the state of no token is 0
        dvarlen_states = None
    if dvarlen_states is None or seq_idx is not None:
        return _scan_backward(
            x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, *how,
            dout, dfinal_states, dvarlen_states,
        )  # fmt: skip
    # without seq_idx the varlen states are those of another scan, in which each sequence is alone
    whole = _scan_backward(
        x, dt, A, B, C, D, z, dt_bias, initial_states, None, None, *how, dout, dfinal_states, None
    )
    tokens = torch.arange(x.shape[1], device=x.device, dtype=cu_seqlens.dtype)
    sequence = torch.bucketize(tokens, cu_seqlens[1:], right=True)[None]
    none = torch.zeros((), dtype=dout.dtype, device=x.device).expand(dout.shape)
    alone = _scan_backward(
        x, dt, A, B, C, None, None, dt_bias, initial_states, sequence, cu_seqlens, *how,
        none, None, dvarlen_states,
    )  # fmt: skip
    return tuple(a if b is None else a + b for a, b in zip(whole, alone))


def _scan_backward(
    x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit,
    dout, dfinal_states, dvarlen_states,
):  # fmt: skip
    plan, tags = _plan(x, B, C, dout, seq_idx, cu_seqlens, dvarlen_states)
    batch, seqlen, heads, _ = x.shape
    groups = B.shape[2]
    dt_bias_ = None if dt_bias is None else dt_bias.contiguous()
    least, most = (float(limit) for limit in dt_limit)
    some = x.numel() > 0
    per_heads = (triton.cdiv(heads, HEADS) * plan.chunks * batch,)
    shared = {
        "T": plan.T, "HEADS": HEADS, "SOFTPLUS": dt_softplus, "PRECISE": plan.precise,
        "ACC": plan.acc,
    }  # fmt: skip
    if some:
        scan_backward_steps_kernel[per_heads](
            dt, A, dt_bias_, plan.step, plan.log, plan.ends, seqlen, plan.pitch, plan.chunks, heads,
            plan.step.numel(), least, most, *dt.stride(), *A.stride(), **shared, num_warps=4,
        )  # fmt: skip
    G, dz = (dout, None) if z is None else _gate(z, dout, x.dtype, plan)
    entering, leaving, dfirst = walk(
        plan, x, G, B, C, initial_states, dfinal_states, dvarlen_states, tags
    )
    dx, sums = roles(plan, x, G, B, C, D, entering, leaving)
    if z is not None:
        gate_role(plan, x, B, C, D, z, dout, entering, dz)
    dB, dC = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (B, C))
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    dA, dbias = (
        torch.empty(batch, plan.chunks, heads, dtype=plan.dtype, device=x.device) for _ in "Ab"
    )
    if some:
        scan_backward_join_kernel[(groups * plan.chunks * batch,)](
            sums["pairs"], B, C, sums["dB"], sums["dC"], dB, dC,
            plan.segment, plan.ends, seqlen, plan.chunks, groups, *B.stride(), *C.stride(),
            D_STATE=B.shape[3], N=plan.N, T=plan.T, ACC=plan.acc,
        )  # fmt: skip
        scan_backward_finish_kernel[per_heads](
            dt, A, dt_bias_, plan.step, *(sums[n] for n in ("q", "r", "own", "path", "after")),
            sums["through"], plan.ends, ddt, dA, dbias, seqlen, plan.pitch, plan.chunks, heads,
            plan.step.numel(), least, most, *dt.stride(), *A.stride(),
            BLOCKS=plan.T // plan.block, **shared, num_warps=4,
        )  # fmt: skip
    dA = dA.sum((0, 1)).to(A.dtype)
    dD = None if D is None else sums["dD"].sum((0, 1)).view(D.shape).to(D.dtype)
    ddt_bias = None if dt_bias is None else dbias.sum((0, 1)).to(dt_bias.dtype)
    return dx, ddt, dA, dB, dC, dD, dz, ddt_bias, dfirst


def _plan(x, B, C, dout, seq_idx, cu_seqlens, dvarlen_states):
    """The plan, and for each chunk the sequence that ends with it or -1 (None without states)."""
    batch, seqlen, heads, _ = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    operands = torch.promote_types(torch.promote_types(x.dtype, B.dtype), C.dtype)
    N = max(16, triton.next_power_of_2(B.shape[3]))
    block = BLOCK
    T = CHUNK if operands.itemsize == 2 and N <= 128 else BLOCK
    chunks, ends, tags, segment = triton.cdiv(seqlen, T), None, None, None
    if dvarlen_states is not None:
        ends, tags = _chunks_of_sequences(cu_seqlens, seqlen, T)
        chunks = tags.shape[0]
    if seq_idx is not None:
        reset = seq_idx[:, 1:] != seq_idx[:, :-1]
        segment = torch.nn.functional.pad(reset, (1, 0)).cumsum(1, dtype=torch.int32)
    vectors = (batch, heads, T * triton.cdiv(seqlen, T))
    step = torch.empty(vectors, dtype=dtype, device=x.device)
    log = torch.empty(
        (2 if operands == torch.float32 else 1, *vectors), dtype=dtype, device=x.device
    )
    return Plan(T, block, N, chunks, ends, segment, operands, dtype, step, log), tags


def _chunks_of_sequences(cu_seqlens, seqlen, T):
    """Borders of chunks of at most T tokens, none of which goes on behind a sequence's end, and the
    sequence that ends with each chunk, or -1. Their number does not depend on the values."""
    device = cu_seqlens.device
    number = torch.arange(cu_seqlens.shape[0] - 1, device=device)
    grid = torch.arange(0, seqlen + T, T, device=device).clamp_max(seqlen)
    borders = torch.cat([grid, cu_seqlens[1:].long()])
    tags = torch.where(cu_seqlens.diff() > 0, number, -1)
    borders, order = borders.sort(stable=True)
    tags = torch.cat([torch.full_like(grid, -1), tags])[order]
    return borders, tags[1:].contiguous()


def _gate(z, dout, dtype, plan):
    """dout silu(z), the gradient of what the gate multiplies, and memory for dz: the same."""
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    G = dz if z.dtype == dtype else torch.empty(z.shape, dtype=dtype, device=z.device)
    batch, seqlen, heads, headdim = z.shape
    width = triton.next_power_of_2(headdim)
    rows = batch * seqlen * heads
    each = max(1, 2048 // width)
    if G.numel():
        scan_backward_gate_kernel[(triton.cdiv(rows, each),)](
            z, dout, G, rows, seqlen, heads, *z.stride(), *dout.stride(),
            HEADDIM=headdim, WIDTH=width, ROWS=each, ACC=plan.acc, num_warps=4,
        )  # fmt: skip
    return G, dz
