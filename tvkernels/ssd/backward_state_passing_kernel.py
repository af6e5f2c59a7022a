"""chunk_state and state_passing of the backward: states before each chunk, gradients behind it.

    S' = chunk_decay S + sum_j decay_to_end_j delta_j B_j x_j       first chunk to last
    dS' = chunk_decay dS + sum_i decay_from_start_i C_i dy_i        last chunk to first

A program keeps the state of its heads, (d_state, headdim), in float32 registers and takes one chunk
per iteration. It stores a copy of the state before each chunk, rounded to the operand dtype of the
other kernels' dots. Both directions run in one launch. The last dS is the gradient of the initial
state.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import dot, strides
from tvkernels.core.tune import tuned
from tvkernels.ssd.backward_device import (
    bounds_of,
    chunk_decay,
    configs,
    count_tiles,
    decay_from_start,
    decay_to_end,
    is_sound,
    is_stored,
    load_bc,
    load_tile,
    state_tile,
    tile_channels,
)

# elements of state that fit in one program's registers
STATE_ELEMENTS = 128 * 160


@triton.jit
def _load_given(
    ptr, dstate_stride, channel_stride, k: tl.constexpr, HEADDIM: tl.constexpr,
    D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Tile k of a state that the caller passed, with any strides; (BLOCK_DSTATE, channels)."""
    channel = tile_channels(k, HEADDIM)
    n = tl.arange(0, BLOCK_DSTATE).to(tl.int64)
    mask = (n < D_STATE)[:, None] & (channel < HEADDIM)[None, :]
    at = (n * dstate_stride)[:, None] + (channel * channel_stride)[None, :]
    return tl.load(ptr + at, mask=mask, other=0.0).to(ACC)


@triton.jit
def _advance(state, decay, bc, x, TWO_FLOATS: tl.constexpr, DOT_PRECISION: tl.constexpr):
    """The state behind a chunk: the decayed state before it, plus what the tokens add."""
    if TWO_FLOATS:
        # tensor cores truncate as they accumulate: with the state as accumulator it would drift
        return tl.fma(state, decay, dot(bc, x, tl.zeros_like(state), DOT_PRECISION))
    return dot(bc, x, state * decay, DOT_PRECISION)


@triton.jit
def _begin(
    ptr, resets_ptr, token, head_stride, channel_stride, dstate_stride, HEADDIM: tl.constexpr,
    FIRST_TILE: tl.constexpr, TILES: tl.constexpr, BLOCK_HEADS: tl.constexpr,
    D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The state to begin from: the one that the caller passed, or 0, also where `token`, which it
    belongs to, is not sound."""
    state = ()
    for i in tl.static_range(BLOCK_HEADS * TILES):
        channel = tile_channels(FIRST_TILE + i % TILES, HEADDIM)
        tile = tl.zeros((BLOCK_DSTATE, channel.shape[0]), ACC)
        if ptr is not None:
            tile = _load_given(
                ptr + (i // TILES) * head_stride, dstate_stride, channel_stride,
                FIRST_TILE + i % TILES, HEADDIM, D_STATE, BLOCK_DSTATE, ACC,
            )  # fmt: skip
            if resets_ptr is not None:
                sound = tl.load(resets_ptr + token) >= 0
                tile = tl.where(sound, tile, 0.0)
        state += (tile,)
    return state


@triton.jit
def _pass_states(
    x_or_dy_ptr, B_or_C_ptr, begin_ptr, dvarlen_ptr, ending_ptr, out_ptr, end_ptr, delta_ptr,
    cumsum_ptr, resets_ptr, bounds_ptr, low_offset, seqlen, pitch, chunks, nheads, x_token, x_head,
    x_channel, bc_token, bc_dstate, begin_head, begin_channel, begin_dstate, dvarlen_seq,
    dvarlen_head, dvarlen_channel, dvarlen_dstate, REVERSE: tl.constexpr, HEADDIM: tl.constexpr,
    FIRST_TILE: tl.constexpr, TILES: tl.constexpr, BLOCK_HEADS: tl.constexpr, D_STATE: tl.constexpr,
    BLOCK_DSTATE: tl.constexpr, CHUNK_SIZE: tl.constexpr, TWO_FLOATS: tl.constexpr,
    ACC: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    """TILES tiles from FIRST_TILE on of BLOCK_HEADS heads through all chunks; pointers are at the
    first head. REVERSE: dy and C, from the last chunk to the first."""
    DOT_DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    size = HEADDIM * D_STATE
    state = _begin(
        begin_ptr, resets_ptr, seqlen - 1 if REVERSE else 0, begin_head, begin_channel,
        begin_dstate, HEADDIM, FIRST_TILE, TILES, BLOCK_HEADS, D_STATE, BLOCK_DSTATE, ACC,
    )  # fmt: skip
    for s in range(chunks):
        chunk = tl.cast(s, tl.int64)
        if REVERSE:
            chunk = chunks - 1 - chunk
        start, stop = bounds_of(bounds_ptr, chunk, seqlen, CHUNK_SIZE)
        t = start + tl.arange(0, CHUNK_SIZE).to(tl.int64)
        stored = is_stored(bounds_ptr, tl.arange(0, CHUNK_SIZE), start, stop, CHUNK_SIZE)
        if dvarlen_ptr is not None:
            sequence = tl.load(ending_ptr + chunk)
            if resets_ptr is not None:
                ended = tl.load(resets_ptr + tl.maximum(stop - 1, 0), mask=stop > 0, other=0)
                sequence = tl.where(ended >= 0, sequence, -1)
            if sequence >= 0:
                state = _add_given(
                    state, dvarlen_ptr + sequence * dvarlen_seq, dvarlen_head, dvarlen_dstate,
                    dvarlen_channel, HEADDIM, FIRST_TILE, TILES, BLOCK_HEADS, D_STATE, BLOCK_DSTATE,
                    ACC,
                )  # fmt: skip
        sound = is_sound(resets_ptr, t, stop)
        bc = tl.trans(
            load_bc(B_or_C_ptr, t, sound, bc_token, bc_dstate, D_STATE, BLOCK_DSTATE, DOT_DTYPE)
        )
        new = ()
        for i in tl.static_range(BLOCK_HEADS * TILES):
            at, mask = state_tile(FIRST_TILE + i % TILES, HEADDIM, D_STATE, BLOCK_DSTATE)
            to = out_ptr + (chunk * nheads + i // TILES) * size + at
            tl.store(to, state[i].to(DOT_DTYPE), mask=mask)
            vectors = (i // TILES) * pitch
            if REVERSE:
                weight = decay_from_start(
                    cumsum_ptr + vectors, low_offset, resets_ptr, t, stored, start, stop, TWO_FLOATS
                )
            else:
                weight = decay_to_end(
                    cumsum_ptr + vectors, low_offset, resets_ptr, t, stored, stop, TWO_FLOATS
                )
                weight *= tl.load(delta_ptr + vectors + t, mask=stored, other=0.0)
            x = load_tile(
                x_or_dy_ptr + (i // TILES) * x_head, t, sound, x_token, x_channel,
                FIRST_TILE + i % TILES, HEADDIM, ACC,
            )  # fmt: skip
            decay = chunk_decay(
                cumsum_ptr + vectors, low_offset, resets_ptr, start, stop, TWO_FLOATS
            )
            x = (x * weight[:, None]).to(DOT_DTYPE)
            new += (_advance(state[i], decay, bc, x, TWO_FLOATS, DOT_PRECISION),)
        state = new
    if end_ptr is not None:
        for i in tl.static_range(BLOCK_HEADS * TILES):
            channel = tile_channels(FIRST_TILE + i % TILES, HEADDIM)
            n = tl.arange(0, BLOCK_DSTATE)
            mask = (n < D_STATE)[:, None] & (channel < HEADDIM)[None, :]
            at = end_ptr + (i // TILES) * size + n[:, None] + (channel * D_STATE)[None, :]
            tl.store(at, state[i].to(end_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_given(
    state, ptr, head_stride, dstate_stride, channel_stride, HEADDIM: tl.constexpr,
    FIRST_TILE: tl.constexpr, TILES: tl.constexpr, BLOCK_HEADS: tl.constexpr,
    D_STATE: tl.constexpr, BLOCK_DSTATE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`state` plus a state that the caller passed."""
    new = ()
    for i in tl.static_range(BLOCK_HEADS * TILES):
        given = _load_given(
            ptr + (i // TILES) * head_stride, dstate_stride, channel_stride, FIRST_TILE + i % TILES,
            HEADDIM, D_STATE, BLOCK_DSTATE, ACC,
        )  # fmt: skip
        new += (state[i] + given,)
    return new


# four warps can hold the states of two heads on sm_100, whose accumulators are not in registers,
# and on gfx942
CONFIGS = configs(
    {"default": ((8, 2),), "sm_90": ((8, 2), (8, 3))}
    | dict.fromkeys(("sm_100", "gfx942"), ((8, 2), (4, 2)))
)


@tuned(CONFIGS, key=["HEADDIM", "D_STATE", "BLOCK_HEADS", "CHUNK_SIZE"])
@triton.jit(do_not_specialize=["seqlen", "chunks"])
def scan_backward_state_passing_kernel(
    x_ptr, dy_ptr, B_ptr, C_ptr, initial_ptr, dfinal_ptr, dvarlen_ptr, ending_ptr, states_ptr,
    dstates_ptr, dinitial_ptr, delta_ptr, cumsum_ptr, resets_ptr, bounds_ptr, seqlen, pitch, chunks,
    nheads, heads_per_group, low_offset: tl.int64, x_batch: tl.int64, x_token, x_head, x_channel,
    dy_batch: tl.int64, dy_token, dy_head, dy_channel, B_batch: tl.int64, B_token, B_group,
    B_dstate, C_batch: tl.int64, C_token, C_group, C_dstate, initial_batch, initial_head,
    initial_channel, initial_dstate, dfinal_batch, dfinal_head, dfinal_channel, dfinal_dstate,
    dvarlen_seq, dvarlen_head, dvarlen_channel, dvarlen_dstate, HEADDIM: tl.constexpr,
    FIRST_TILE: tl.constexpr, TILES: tl.constexpr, BLOCK_HEADS: tl.constexpr, D_STATE: tl.constexpr,
    BLOCK_DSTATE: tl.constexpr, CHUNK_SIZE: tl.constexpr, TWO_FLOATS: tl.constexpr,
    ACC: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_HEADS heads of one batch index, in one of the two directions
    blocks = nheads // BLOCK_HEADS
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    head = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_HEADS
    group = head // heads_per_group
    size = HEADDIM * D_STATE
    vectors = (batch * nheads + head) * pitch
    state = (batch * chunks * nheads + head) * size
    if resets_ptr is not None:
        resets_ptr += batch * seqlen
    if initial_ptr is not None:
        initial_ptr += batch * initial_batch + head * initial_head
    if dfinal_ptr is not None:
        dfinal_ptr += batch * dfinal_batch + head * dfinal_head
    if dvarlen_ptr is not None:
        dvarlen_ptr += head * dvarlen_head
    if dinitial_ptr is not None:
        dinitial_ptr += (batch * nheads + head) * size
    if tl.program_id(1) == 0:
        _pass_states(
            x_ptr + batch * x_batch + head * x_head, B_ptr + batch * B_batch + group * B_group,
            initial_ptr, None, ending_ptr, states_ptr + state, None, delta_ptr + vectors,
            cumsum_ptr + vectors, resets_ptr, bounds_ptr, low_offset, seqlen, pitch, chunks, nheads,
            x_token, x_head, x_channel, B_token, B_dstate, initial_head, initial_channel,
            initial_dstate, dvarlen_seq, dvarlen_head, dvarlen_channel, dvarlen_dstate, False,
            HEADDIM, FIRST_TILE, TILES, BLOCK_HEADS, D_STATE, BLOCK_DSTATE, CHUNK_SIZE, TWO_FLOATS,
            ACC, DOT_PRECISION,
        )  # fmt: skip
    else:
        _pass_states(
            dy_ptr + batch * dy_batch + head * dy_head, C_ptr + batch * C_batch + group * C_group,
            dfinal_ptr, dvarlen_ptr, ending_ptr, dstates_ptr + state, dinitial_ptr,
            delta_ptr + vectors, cumsum_ptr + vectors, resets_ptr, bounds_ptr, low_offset, seqlen,
            pitch, chunks, nheads, dy_token, dy_head, dy_channel, C_token, C_dstate, dfinal_head,
            dfinal_channel, dfinal_dstate, dvarlen_seq, dvarlen_head, dvarlen_channel,
            dvarlen_dstate, True, HEADDIM, FIRST_TILE, TILES, BLOCK_HEADS, D_STATE, BLOCK_DSTATE,
            CHUNK_SIZE, TWO_FLOATS, ACC, DOT_PRECISION,
        )  # fmt: skip


def state_passing(plan, x, dy, B, C, initial_states, dfinal_states, dvarlen_states, ending):
    """The states before each chunk, the gradients behind it (batch, chunks, nheads, d_state,
    headdim), and the gradient of the initial state or None."""
    batch, seqlen, nheads, headdim = x.shape
    d_state, heads_per_group = B.shape[3], nheads // B.shape[2]
    shape = (batch, plan.chunks, nheads, d_state, headdim)
    states = torch.empty(shape, dtype=plan.dot_dtype, device=x.device)
    dstates = torch.empty_like(states)
    dinitial = None
    if initial_states is not None:
        dinitial = torch.empty(initial_states.shape, dtype=initial_states.dtype, device=x.device)
    tiles = count_tiles(headdim)
    # two heads of a group share the loads of B and C
    two_fit = 2 * plan.block_dstate * headdim <= STATE_ELEMENTS
    block_heads = 2 if heads_per_group % 2 == 0 and two_fit and not plan.two_floats else 1
    # one head: as many tiles of 64 channels as a program can hold
    fit = max(1, STATE_ELEMENTS // (plan.block_dstate * 64))
    count = tiles if block_heads == 2 else min(tiles, fit)
    if batch:
        for first in range(0, tiles, count):
            scan_backward_state_passing_kernel[(batch * nheads // block_heads, 2)](
                x, dy, B, C, initial_states, dfinal_states, dvarlen_states, ending, states, dstates,
                dinitial, plan.delta, plan.cumsum, plan.resets, plan.bounds, seqlen, plan.pitch,
                plan.chunks, nheads, heads_per_group, plan.delta.numel(), *x.stride(), *dy.stride(),
                *B.stride(), *C.stride(), *strides(initial_states, 4), *strides(dfinal_states, 4),
                *strides(dvarlen_states, 4), HEADDIM=headdim, FIRST_TILE=first,
                TILES=min(count, tiles - first), BLOCK_HEADS=block_heads, D_STATE=d_state,
                BLOCK_DSTATE=plan.block_dstate, CHUNK_SIZE=plan.chunk_size,
                TWO_FLOATS=plan.two_floats, ACC=plan.acc,
            )  # fmt: skip
    return states, dstates, dinitial
