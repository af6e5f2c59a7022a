"""Triton engine of the scan: its launchers, and what runs in which order.

The forward keeps the state S (d_state, headdim) of a head in registers, float32, through a whole
segment of the sequence, and goes over the tokens in chunks of Q = 64 (walk_kernel). Of a chunk:

    out = ((C B^T) * E) (delta x) + e * (C S) + D x,    S = kept S + B^T (a * x)

with the decays E between its tokens, e from its start, a to its end, times delta. Memory is read
once: x, dt, B, C, z in, out; nothing per chunk is stored. C B^T is computed anew for every head, at
this Q cheaper than to share it. Step sizes, decays and their sums are made where they are used.

One program owns one head (of more than 128 channels, or 64 at d_state 256, a part of it) in one
segment. Its channels are tiles of 64, 32 and 16 side by side, 80 = 64 + 16: no multiple of 16 is
padded. Where the parts are not equal, 144 = 80 + 64, the last has a launch of its own. Programs run
head by head: the heads of a group, which read the same B and C, are neighbours in time and cache.

On 132 processors, two programs on each (registers allow no more): batch 1 of 128 heads has S = 2
segments, 256 programs; batch 8 has 1,024 with S = 1. Short sequences keep S = 1 below 2 x 512
tokens: 128 programs, of at most 16 chunks each. S depends on shapes alone, as do all sums.

With S > 1 another kernel runs before (states_kernel): for every piece of at most 8,192 tokens
before the last segment, what its tokens add to the state, and what it leaves of an older one. It
looks back over dt first and begins where memory begins: mostly some hundred tokens before the end
of the piece. The walk folds the pieces before its segment into the state that it starts from. The
same kernel makes the states after packed sequences (cu_seqlens).

Products of 16 bit tensors take operands of 16 bit and add up in float32: what a token adds to the
state is rounded once, the state itself only as an operand, never from chunk to chunk. Those of
float32 tensors are three products of TF32 on NVIDIA, and float32's own on AMD. The backward has a
header of its own (backward_kernel).
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, strides
from tvkernels.ssd.backward_kernel import scan_backward
from tvkernels.ssd.states_kernel import state_kernel
from tvkernels.ssd.walk_kernel import walk_kernel

__all__ = ["scan_backward", "scan_forward"]

# programs of a launch that fill the GPU. A constant, not the number of processors: sequences are
# cut alike on every GPU
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
    form, most = _form(x, B, C, z, out, dt_softplus, dt_limit)
    parts = _parts(headdim, most)
    sizes = (nheads, nheads // ngroups, headdim, d_state, *dt_limit)
    programs = batch * nheads * sum(blocks for _, _, blocks in parts)
    segments, segment, pieces, piece = _cut(programs, seqlen)
    # of one segment nothing is read of them: given all the same, so that no length compiles anew
    partial = fade = last
    if segments > 1:
        before = (segments - 1) * pieces
        partial = torch.empty(batch, before, *last.shape[1:], dtype=wide, device=x.device)
        fade = torch.empty(batch, before, nheads, dtype=wide, device=x.device)
    num_seqs = 0 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = torch.empty(num_seqs, *last.shape[1:], dtype=C.dtype, device=x.device)
    for first, widths, blocks in parts if last.numel() else ():
        own = form | {"WIDTHS": widths, "WIDTH": sum(widths), "BLOCKS": blocks}
        entering, sums = _rows_from(initial_states, first), _rows_from(partial, first)
        inputs = (x[..., first:], dt, A, B, dt_bias, seq_idx)
        if segments > 1:
            _states(inputs, None, None, sums, fade, piece, before, sizes, own)
        walk_kernel[(batch * segments * nheads * blocks,)](
            *inputs[:4], C, None if D is None else D[:, first:],
            None if z is None else z[..., first:], dt_bias, entering, seq_idx, sums, fade,
            out[..., first:], _rows_from(last, first), seqlen, segment, segments, pieces, *sizes,
            *x.stride(), *dt.stride(), *A.stride(), *B.stride(), *C.stride(), *strides(D, 2),
            *strides(z, 4), *strides(dt_bias, 1), *strides(initial_states, 4),
            *strides(seq_idx, 2), nheads * headdim, headdim,
            D_OF_HEAD=strides(D, 2)[1] == 0, ALIKE=B.stride() == C.stride(), **own,
        )  # fmt: skip
        after = _rows_from(states, first)
        _states(inputs, entering, cu_seqlens, after, None, seqlen, num_seqs, sizes, own)
    return out, last, states


def _rows_from(states, first):
    """States (..., headdim, d_state), from a channel on."""
    return None if states is None else states[..., first:, :]


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
    piece = ROUND * max(1, triton.cdiv(triton.cdiv(seqlen, segments * pieces), ROUND))
    # rounded up, so that the last ones may have become superfluous
    return max(1, triton.cdiv(seqlen, piece * pieces)), piece * pieces, pieces, piece


def _form(x, B, C, z, out, dt_softplus, dt_limit):
    """What the kernels are compiled for, but for the channels; the most of those in a program."""
    acc = accumulator(x.dtype)
    narrow = x.dtype in (torch.bfloat16, torch.float16) and x.dtype == B.dtype == C.dtype
    N = max(16, triton.next_power_of_2(B.shape[-1]))
    form = {
        "N": N,
        "SOFTPLUS": dt_softplus,
        "ACC": acc,
        "SUM": tl.float32 if narrow and dt_limit[0] >= 0 else tl.float64,
        "DOT": {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[x.dtype] if narrow else acc,
        "EXACT": B.shape[-1] == N and x.shape[-1] % 16 == 0,
        # of offsets within a chunk: 64 bits take several instructions for each row
        "OFFSET": tl.int32 if all(map(_near, (x, B, C, z, out))) else tl.int64,
    }
    return form, 8192 // N if acc == tl.float64 else 16384 // N


def _near(tensor):
    """Whether 32 bits hold every offset within a chunk, padded as kernels may pad it."""
    if tensor is None:
        return True
    _, token, _, channel = tensor.stride()
    return ROUND * token + 2 * max(16, tensor.shape[3]) * channel < 2**31


def _parts(headdim, most):
    """The launches of a head, each (its first channel, the widths of a program's tiles, programs
    side by side): the fewest programs of at most `most` channels, since each makes C B^T anew, of
    which the last one may have less."""
    blocks = triton.cdiv(headdim, most)
    width = 16 * triton.cdiv(headdim, 16 * blocks)
    # kernels mask by the whole head: in a launch for the rest, every channel has to be there
    alike, rest = (blocks, 0) if headdim % 16 else divmod(headdim, width)
    return [(0, _tiles(width), alike)] + [(alike * width, _tiles(rest), 1)] * (rest > 0)


def _tiles(width):
    return (64,) * (width // 64) + tuple(w for w in (32, 16) if width & w)
