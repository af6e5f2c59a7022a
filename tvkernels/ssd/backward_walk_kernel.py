"""The walk of the scan's backward: the states that enter the chunks, and the gradients that leave.

    S' = decay S + sum_j decay_to_end_j delta_j B_j x_j        first chunk to last
    R' = decay R + sum_i decay_from_start_i C_i G_i            last chunk to first

A program owns the whole state of its heads, (d_state, headdim) in float32 registers, and takes one
chunk a step; the rounded copy that the other kernels multiply by is written once per chunk. Forward
and backward run side by side. The last R is the gradient of the initial state.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import strides
from tvkernels.core.tune import tuned
from tvkernels.ssd.backward_tiles_kernel import (
    bounds_of,
    columns_of,
    configs,
    count_pieces,
    decay_from_start,
    decay_through,
    decay_to_end,
    held,
    load_piece,
    load_rows,
    product,
    state_piece,
)

# elements of the states in one program's registers
HELD = 128 * 160


@triton.jit
def _given(
    ptr, n_stride, p_stride, k: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr,
    N: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Piece k of a head's state that the caller gave, by any strides; (N, channels)."""
    column = columns_of(k, HEADDIM)
    n = tl.arange(0, N).to(tl.int64)
    mask = (n < D_STATE)[:, None] & (column < HEADDIM)[None, :]
    at = (n * n_stride)[:, None] + (column * p_stride)[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0).to(ACC)


@triton.jit
def _moved(state, through, matrix, rows, PRECISE: tl.constexpr, DOT: tl.constexpr):
    """A state taken through a chunk: what is left of it, and what the chunk's tokens add."""
    if PRECISE:
        # tensor cores cut off what they add up: into the state itself, that is a drift
        return tl.fma(state, through, product(matrix, rows, tl.zeros_like(state), DOT))
    return product(matrix, rows, state * through, DOT)


@triton.jit
def _walk(
    rows_ptr, matrix_ptr, edge_ptr, more_ptr, tags_ptr, states_ptr, last_ptr,
    step_ptr, log_ptr, seg_ptr, ends_ptr, low_by, seqlen, pitch, chunks, heads,
    rows_token, rows_head, rows_channel, matrix_token, matrix_entry,
    edge_head, edge_channel, edge_entry, more_seq, more_head, more_channel, more_entry,
    BACK: tl.constexpr, HEADDIM: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr,
    PAIR: tl.constexpr, D_STATE: tl.constexpr, N: tl.constexpr, T: tl.constexpr,
    PRECISE: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """All chunks of PAIR heads, whose pieces from FIRST on are COUNT; pointers are at the head."""
    OP: tl.constexpr = states_ptr.dtype.element_ty
    size = HEADDIM * D_STATE
    state = ()
    for i in tl.static_range(PAIR * COUNT):
        piece = tl.zeros((N, columns_of(FIRST + i % COUNT, HEADDIM).shape[0]), ACC)
        if edge_ptr is not None:
            piece = _given(
                edge_ptr + (i // COUNT) * edge_head, edge_entry, edge_channel, FIRST + i % COUNT,
                HEADDIM, D_STATE, N, ACC,
            )  # fmt: skip
        state += (piece,)
    for s in range(chunks):
        chunk = tl.cast(s, tl.int64)
        if BACK:
            chunk = chunks - 1 - chunk
        start, stop = bounds_of(ends_ptr, chunk, seqlen, T)
        t = start + tl.arange(0, T).to(tl.int64)
        here = held(ends_ptr, tl.arange(0, T), start, stop, T)
        if more_ptr is not None:
            tag = tl.load(tags_ptr + chunk)
            if tag >= 0:
                state = _added(
                    state, more_ptr + tag * more_seq, more_head, more_entry, more_channel, HEADDIM,
                    FIRST, COUNT, PAIR, D_STATE, N, ACC,
                )  # fmt: skip
        matrix = tl.trans(
            load_rows(matrix_ptr, t, stop, matrix_token, matrix_entry, D_STATE, N, OP)
        )
        new = ()
        for i in tl.static_range(PAIR * COUNT):
            at, mask = state_piece(FIRST + i % COUNT, HEADDIM, D_STATE, N)
            to = states_ptr + (chunk * heads + i // COUNT) * size + at
            tl.store(to, state[i].to(OP), mask=mask)
            vectors = (i // COUNT) * pitch
            if BACK:
                weight = decay_from_start(
                    log_ptr + vectors, low_by, seg_ptr, t, here, start, stop, PRECISE
                )
            else:
                weight = decay_to_end(log_ptr + vectors, low_by, seg_ptr, t, here, stop, PRECISE)
                weight *= tl.load(step_ptr + vectors + t, mask=here, other=0.0)
            rows = load_piece(
                rows_ptr + (i // COUNT) * rows_head, t, stop, rows_token, rows_channel,
                FIRST + i % COUNT, HEADDIM, ACC,
            )  # fmt: skip
            through = decay_through(log_ptr + vectors, low_by, seg_ptr, start, stop, PRECISE)
            rows = (rows * weight[:, None]).to(OP)
            new += (_moved(state[i], through, matrix, rows, PRECISE, DOT),)
        state = new
    if last_ptr is not None:
        for i in tl.static_range(PAIR * COUNT):
            column = columns_of(FIRST + i % COUNT, HEADDIM)
            n = tl.arange(0, N)
            mask = (n < D_STATE)[:, None] & (column < HEADDIM)[None, :]
            at = last_ptr + (i // COUNT) * size + n[:, None] + (column * D_STATE)[None, :]
            tl.store(at, state[i].to(last_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _added(
    state, ptr, head, entry, channel, HEADDIM: tl.constexpr, FIRST: tl.constexpr,
    COUNT: tl.constexpr, PAIR: tl.constexpr, D_STATE: tl.constexpr, N: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    new = ()
    for i in tl.static_range(PAIR * COUNT):
        more = _given(
            ptr + (i // COUNT) * head, entry, channel, FIRST + i % COUNT, HEADDIM, D_STATE, N, ACC
        )
        new += (state[i] + more,)
    return new


# four warps hold a pair of states on sm_100, whose sums are not in registers, and on gfx942 alone
CONFIGS = configs(
    {"default": ((8, 2),), "sm_90": ((8, 2), (8, 3))}
    | dict.fromkeys(("sm_100", "gfx942"), ((8, 2), (4, 2)))
)


@tuned(CONFIGS, key=["HEADDIM", "D_STATE", "PAIR", "T"])
@triton.jit(do_not_specialize=["seqlen", "chunks"])
def scan_backward_walk_kernel(
    x_ptr, g_ptr, b_ptr, c_ptr, first_ptr, dlast_ptr, dends_ptr, tags_ptr,
    entering_ptr, leaving_ptr, dfirst_ptr, step_ptr, log_ptr, seg_ptr, ends_ptr,
    seqlen, pitch, chunks, heads, ratio, low_by: tl.int64,
    x_batch: tl.int64, x_token, x_head, x_channel, g_batch: tl.int64, g_token, g_head, g_channel,
    b_batch: tl.int64, b_token, b_group, b_entry, c_batch: tl.int64, c_token, c_group, c_entry,
    first_batch, first_head, first_channel, first_entry,
    dlast_batch, dlast_head, dlast_channel, dlast_entry,
    dends_seq, dends_head, dends_channel, dends_entry,
    HEADDIM: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, PAIR: tl.constexpr,
    D_STATE: tl.constexpr, N: tl.constexpr, T: tl.constexpr, PRECISE: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # one program owns PAIR heads of one row of the batch, in one of the two directions
    blocks = heads // PAIR
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    head = (tl.program_id(0) % blocks).to(tl.int64) * PAIR
    group = head // ratio
    size = HEADDIM * D_STATE
    vectors = (batch * heads + head) * pitch
    state = (batch * chunks * heads + head) * size
    if seg_ptr is not None:
        seg_ptr += batch * seqlen
    if first_ptr is not None:
        first_ptr += batch * first_batch + head * first_head
    if dlast_ptr is not None:
        dlast_ptr += batch * dlast_batch + head * dlast_head
    if dends_ptr is not None:
        dends_ptr += head * dends_head
    if dfirst_ptr is not None:
        dfirst_ptr += (batch * heads + head) * size
    if tl.program_id(1) == 0:
        _walk(
            x_ptr + batch * x_batch + head * x_head, b_ptr + batch * b_batch + group * b_group,
            first_ptr, None, tags_ptr, entering_ptr + state, None,
            step_ptr + vectors, log_ptr + vectors, seg_ptr, ends_ptr, low_by, seqlen, pitch, chunks,
            heads,
            x_token, x_head, x_channel, b_token, b_entry, first_head, first_channel, first_entry,
            dends_seq, dends_head, dends_channel, dends_entry,
            False, HEADDIM, FIRST, COUNT, PAIR, D_STATE, N, T, PRECISE, ACC, DOT,
        )  # fmt: skip
    else:
        _walk(
            g_ptr + batch * g_batch + head * g_head, c_ptr + batch * c_batch + group * c_group,
            dlast_ptr, dends_ptr, tags_ptr, leaving_ptr + state, dfirst_ptr,
            step_ptr + vectors, log_ptr + vectors, seg_ptr, ends_ptr, low_by, seqlen, pitch, chunks,
            heads,
            g_token, g_head, g_channel, c_token, c_entry, dlast_head, dlast_channel, dlast_entry,
            dends_seq, dends_head, dends_channel, dends_entry,
            True, HEADDIM, FIRST, COUNT, PAIR, D_STATE, N, T, PRECISE, ACC, DOT,
        )  # fmt: skip


def walk(plan, x, G, B, C, initial_states, dfinal_states, dvarlen_states, tags):
    """The states before each chunk, the gradients behind it (batch, chunks, nheads, d_state,
    headdim), and the gradient of the initial state or None."""
    batch, seqlen, heads, headdim = x.shape
    d_state, ratio = B.shape[3], heads // B.shape[2]
    shape = (batch, plan.chunks, heads, d_state, headdim)
    entering, leaving = (torch.empty(shape, dtype=plan.operands, device=x.device) for _ in "SR")
    dfirst = None
    if initial_states is not None:
        dfirst = torch.empty(initial_states.shape, dtype=initial_states.dtype, device=x.device)
    pieces = count_pieces(headdim)
    pair = 1
    if ratio % 2 == 0 and 2 * plan.N * headdim <= HELD and not plan.precise:
        # two heads that read B and C once
        pair = 2
    # as many pieces of 64 channels as a program can hold
    count = min(pieces, max(1, HELD // (plan.N * 64))) if pair == 1 else pieces
    if batch:
        for first in range(0, pieces, count):
            scan_backward_walk_kernel[(batch * heads // pair, 2)](
                x, G, B, C, initial_states, dfinal_states, dvarlen_states, tags,
                entering, leaving, dfirst, plan.step, plan.log, plan.segment, plan.ends,
                seqlen, plan.pitch, plan.chunks, heads, ratio, plan.step.numel(),
                *x.stride(), *G.stride(), *B.stride(), *C.stride(),
                *strides(initial_states, 4), *strides(dfinal_states, 4),
                *strides(dvarlen_states, 4),
                HEADDIM=headdim, FIRST=first, COUNT=min(count, pieces - first), PAIR=pair,
                D_STATE=d_state, N=plan.N, T=plan.T, PRECISE=plan.precise, ACC=plan.acc,
            )  # fmt: skip
    return entering, leaving, dfirst
