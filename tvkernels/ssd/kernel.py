"""Triton engine of the scan.

WIP
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, strides
from tvkernels.ssd.states_kernel import state_kernel
from tvkernels.ssd.walk_kernel import walk_kernel

__all__ = ["scan_forward"]

# programs of a launch that fill the GPU. A constant, not the number of processors: the same sums in
# the same order on every GPU
PROGRAMS = 256
# a segment has at least SEGMENT tokens, a piece at most PIECE; both multiples of every chunk
SEGMENT = 512
PIECE = 8192
ROUND = 128


def scan_forward(
    x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit
):
    """out, the state after the last token, and those after each sequence of cu_seqlens."""
    batch, seqlen, nheads, headdim = x.shape
    ngroups, d_state = B.shape[2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = torch.empty(batch, nheads, headdim, d_state, dtype=wide, device=x.device)
    if D is not None and D.ndim == 1:
        D = D[:, None].expand(nheads, headdim)
    inputs = (x, dt, A, B, dt_bias, seq_idx)
    form = _form(x, B, C, dt_softplus, dt_limit)
    sizes = (nheads, nheads // ngroups, headdim, d_state, *dt_limit)
    blocks = form["BLOCKS"] * nheads
    segments, segment, pieces, piece = _cut(batch * blocks, seqlen)
    partial = fade = None
    if segments > 1:
        before = (segments - 1) * pieces
        partial = torch.empty(batch, before, *last.shape[1:], dtype=wide, device=x.device)
        fade = torch.empty(batch, before, nheads, dtype=wide, device=x.device)
        _states(inputs, None, None, partial, fade, piece, before, sizes, form)
    if last.numel():
        walk_kernel[(batch * segments * blocks,)](
            x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, partial, fade, out, last,
            seqlen, segment, segments, pieces, *sizes,
            *x.stride(), *dt.stride(), *A.stride(), *B.stride(), *C.stride(), *strides(D, 2),
            *strides(z, 4), *strides(dt_bias, 1), *strides(initial_states, 4),
            *strides(seq_idx, 2), nheads * headdim, headdim,
            D_OF_HEAD=strides(D, 2)[1] == 0,
            ALIKE=B.stride() == C.stride(), **form,
        )  # fmt: skip
    num_seqs = 0 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = torch.empty(num_seqs, *last.shape[1:], dtype=C.dtype, device=x.device)
    _states(inputs, initial_states, cu_seqlens, states, None, seqlen, num_seqs, sizes, form)
    return out, last, states


def _states(inputs, initial_states, cu_seqlens, states, fade, piece, pieces, sizes, form):
    x, dt, A, B, dt_bias, seq_idx = inputs
    batch, seqlen, nheads, _ = x.shape
    if not states.numel():
        return
    state_kernel[(batch * pieces * nheads * form["BLOCKS"],)](
        x, dt, A, B, dt_bias, initial_states, seq_idx, cu_seqlens, states, fade,
        seqlen, piece, pieces, *sizes,
        *x.stride(), *dt.stride(), *A.stride(), *B.stride(), *strides(dt_bias, 1),
        *strides(initial_states, 4)[1:], *strides(seq_idx, 2), *strides(cu_seqlens, 1), **form,
    )  # fmt: skip


def _cut(rows, seqlen):
    """(segments, their length, pieces in each, their length) of every sequence, given how many
    programs go through one segment of all of them."""
    segments = max(1, min(triton.cdiv(PROGRAMS, max(1, rows)), seqlen // SEGMENT))
    pieces = max(1, triton.cdiv(seqlen, segments * PIECE))
    piece = ROUND * triton.cdiv(triton.cdiv(seqlen, segments * pieces), ROUND)
    # rounded up, so that the last ones may have become superfluous
    return max(1, triton.cdiv(seqlen, piece * pieces)), piece * pieces, pieces, piece


def _form(x, B, C, dt_softplus, dt_limit):
    """What the kernels are compiled for."""
    acc = accumulator(x.dtype)
    narrow = x.dtype in (torch.bfloat16, torch.float16) and x.dtype == B.dtype == C.dtype
    total = tl.float32 if narrow and dt_limit[0] >= 0 else tl.float64
    N = max(16, triton.next_power_of_2(B.shape[-1]))
    main, tail, blocks = _tiles(x.shape[-1], 8192 // N if acc == tl.float64 else 16384 // N)
    return {
        "N": N,
        "MAIN": main,
        "TAIL": tail,
        "BLOCKS": blocks,
        "SOFTPLUS": dt_softplus,
        "ACC": acc,
        "SUM": total,
        "DOT": {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[x.dtype] if narrow else acc,
        "EXACT": N == B.shape[-1] and x.shape[-1] % (main + tail) == 0,
    }


def _tiles(headdim, most):
    """(MAIN, TAIL, programs side by side) with the fewest idle channels, of at most `most`."""
    widths = [(m, t) for m in (16, 32, 64) for t in (0, 16, 32, 64) if t <= m and m + t <= most]
    choices = [(triton.cdiv(headdim, m + t), m, t) for m, t in widths]
    blocks, main, tail = min(choices, key=lambda c: (c[0] * (c[1] + c[2]), c[0], c[2]))
    return main, tail, blocks
