"""The scan's forward on Triton: its launchers, and what runs in which order.

The forward keeps the state S (d_state, headdim) of a head in registers, float32, through a whole
segment of the sequence, and takes the tokens in chunks of 64 (chunk_scan_kernel). For each chunk:

    out = ((C B^T) * E) (delta x) + e * (C S) + D x,    S = decay S + B^T (a * x)

where E are the decays between the chunk's tokens, e those from its start, a those to its end times
delta, decay that of the whole chunk. x, dt, B, C, z and out pass memory once; no state or decay of
a chunk is stored. Each head computes C B^T anew: for 64 tokens that costs less than sharing it.

One program owns one head in one segment. A head of more than 128 channels (64 at d_state 256) is
divided into blocks of channels, a program each. A block is tiles of 64, 32 and 16 channels side by
side, as 80 = 64 + 16, so no multiple of 16 is padded. If the blocks differ, as in 144 = 80 + 64,
the last has a launch of its own. Programs run head by head: the heads of a group read the same B
and C at about the same time, and find them in cache.

On 132 processors with two programs each (registers allow no more): batch 1 of 128 heads has 2
segments, 256 programs; batch 8 has 1,024 programs with one segment. Sequences below 2 x 512 tokens
have one segment: 128 programs of at most 16 chunks each. The division depends on shapes alone, and
so does the order of all sums.

With more than one segment, chunk_state_kernel runs first. For each subsegment, at most 8,192 tokens
before the last segment, it computes the state that its tokens add up to, and the decay of an older
state across it. It looks back over dt first and skips tokens that are forgotten: most states need
only some hundred tokens before the subsegment's end. chunk_scan_kernel folds the subsegments before
its segment into the state that it starts from. The same kernel computes the states after packed
sequences (cu_seqlens). not_finite_kernel runs last, and ends at once unless a state is not finite.

Dots of 16 bit tensors take 16 bit operands and accumulate in float32: what a token adds to the
state is rounded once, the state itself only as an operand, never from chunk to chunk. Dots of
float32 tensors are three TF32 products on NVIDIA, native float32 on AMD. The backward's header is
in backward_kernel.py.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, strides
from tvkernels.ssd.backward_kernel import AMPLE, check_backward_size, scan_backward, shared_memory
from tvkernels.ssd.chunk_scan_kernel import chunk_scan_kernel
from tvkernels.ssd.chunk_state_kernel import chunk_state_kernel
from tvkernels.ssd.not_finite_kernel import not_finite_kernel

__all__ = ["scan_backward", "scan_forward"]

# constexprs of not_finite_kernel
TOKENWISE = ("BLOCK_DSTATE", "TILE_WIDTHS", "BLOCK_HEADDIM", "HEADDIM_BLOCKS", "SOFTPLUS", "ACC")
# programs of a launch that fill the GPU. A constant, not the number of processors, so that
# sequences are divided alike on every GPU
PROGRAMS = 256
# a segment has at least SEGMENT tokens, a subsegment at most SUBSEGMENT; ROUND and both are
# multiples of every CHUNK_SIZE
SEGMENT = 512
SUBSEGMENT = 8192
ROUND = 128


def scan_forward(
    x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit,
    learns=False,
):  # fmt: skip
    """out, the state after the last token, and those after each sequence of cu_seqlens.

    With `learns` a backward follows, so what that refuses is refused now.
    """
    batch, seqlen, nheads, headdim = x.shape
    ngroups, d_state = B.shape[2:]
    _check_size(x, B, C)
    if learns:
        check_backward_size(x, B, C)
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    final = torch.empty(batch, nheads, headdim, d_state, dtype=wide, device=x.device)
    if D is not None and D.ndim == 1:
        D = D[:, None].expand(nheads, headdim)
    constants, most = _constants(x, B, C, z, out, dt_softplus, dt_limit)
    launches = _launches(headdim, most)
    sizes = (nheads, nheads // ngroups, headdim, d_state, *dt_limit)
    programs = batch * nheads * sum(blocks for _, _, blocks in launches)
    segments, segment_len, subsegments, subsegment_len = _cut(programs, seqlen)
    # Unused with one segment; pass any tensor rather than None so that both cases share one
    # compiled kernel
    states = decays = final
    if segments > 1:
        before = (segments - 1) * subsegments
        states = torch.empty(batch, before, *final.shape[1:], dtype=wide, device=x.device)
        decays = torch.empty(batch, before, nheads, dtype=wide, device=x.device)
    num_seqs = 0 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    varlen = torch.empty(num_seqs, *final.shape[1:], dtype=C.dtype, device=x.device)
    for first, widths, blocks in launches if final.numel() else ():
        own = constants | {
            "TILE_WIDTHS": widths, "BLOCK_HEADDIM": sum(widths), "HEADDIM_BLOCKS": blocks,
        }  # fmt: skip
        own_states, initial = _from_channel(states, first), _from_channel(initial_states, first)
        inputs = (x[..., first:], dt, A, B, dt_bias, seq_idx)
        if segments > 1:
            _chunk_state(inputs, None, None, own_states, decays, subsegment_len, before, sizes, own)
        finite = torch.empty(batch * segments * nheads * blocks, dtype=torch.int32, device=x.device)
        arguments = (
            *inputs[:4], C, None if D is None else D[:, first:],
            None if z is None else z[..., first:], dt_bias, initial, seq_idx, own_states, decays,
            out[..., first:], _from_channel(final, first), finite, seqlen, segment_len, segments,
            subsegments, *sizes,
            *x.stride(), *dt.stride(), *A.stride(), *B.stride(), *C.stride(), *strides(D, 2),
            *strides(z, 4), *strides(dt_bias, 1), *strides(initial_states, 4),
            *strides(seq_idx, 2), nheads * headdim, headdim,
        )  # fmt: skip
        chunk_scan_kernel[(finite.numel(),)](
            *arguments, D_PER_CHANNEL=strides(D, 2)[1] != 0,
            SAME_STRIDES=B.stride() == C.stride(), **own,
        )  # fmt: skip
        not_finite_kernel[(batch * nheads * blocks,)](
            *arguments, **{name: own[name] for name in TOKENWISE}, num_warps=8
        )
        after = _from_channel(varlen, first)
        _chunk_state(inputs, initial, cu_seqlens, after, None, seqlen, num_seqs, sizes, own)
    return out, final, varlen


def _check_size(x, B, C):
    """Refuse a state that does not fit in the shared memory of the GPU of x, before any launch."""
    narrow = x.dtype.itemsize == B.dtype.itemsize == C.dtype.itemsize == 2
    d_state, most = B.shape[3], 128 if x.dtype == torch.float64 else 256
    if narrow or d_state <= most:
        return
    shared = shared_memory(x.device)
    if shared < AMPLE:
        raise NotImplementedError(
            f"mamba_chunk_scan_combined: with {shared // 1024} KiB of shared memory in a block "
            f"Triton has d_state up to {most} for tensors that are not all of 16 bit and x of "
            f"{str(x.dtype)[6:]}, got {d_state}; "
            'use_backend("reference") has any'
        )


def _from_channel(states, first):
    """States (..., headdim, d_state), from a channel on."""
    return None if states is None else states[..., first:, :]


def _chunk_state(
    inputs, initial, cu_seqlens, states, decays, subsegment_len, subsegments, sizes, constants
):
    """Fills states and decays (unless None) of the subsegments, or of the packed sequences."""
    x, dt, A, B, dt_bias, seq_idx = inputs
    batch, seqlen, nheads, _ = x.shape
    if not states.numel():
        return
    chunk_state_kernel[(batch * subsegments * nheads * constants["HEADDIM_BLOCKS"],)](
        x, dt, A, B, dt_bias, initial, seq_idx, cu_seqlens, states, decays,
        seqlen, subsegment_len, subsegments, *sizes,
        *x.stride(), *dt.stride(), *A.stride(), *B.stride(), *strides(dt_bias, 1),
        *strides(initial, 4)[1:], *strides(seq_idx, 2), *strides(cu_seqlens, 1), **constants,
    )  # fmt: skip


def _cut(rows, seqlen):
    """(segments, their length, subsegments of each, their length) of every sequence, where one
    segment of all sequences takes `rows` programs."""
    segments = max(1, min(triton.cdiv(PROGRAMS, max(1, rows)), seqlen // SEGMENT))
    subsegments = max(1, triton.cdiv(seqlen, segments * SUBSEGMENT))
    subsegment_len = max(1, triton.cdiv(triton.cdiv(seqlen, segments * subsegments), ROUND)) * ROUND
    segment_len = subsegments * subsegment_len
    # lengths were rounded up: the last segments may have no tokens left
    return max(1, triton.cdiv(seqlen, segment_len)), segment_len, subsegments, subsegment_len


def _constants(x, B, C, z, out, dt_softplus, dt_limit):
    """The kernels' constexprs but for the channels, and the most channels that a program takes."""
    acc = accumulator(x.dtype)
    narrow = x.dtype in (torch.bfloat16, torch.float16) and x.dtype == B.dtype == C.dtype
    dtypes = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    block_dstate = max(16, triton.next_power_of_2(B.shape[-1]))
    constants = {
        "BLOCK_DSTATE": block_dstate,
        "SOFTPLUS": dt_softplus,
        "ACC": acc,
        "SUM": tl.float32 if narrow and dt_limit[0] >= 0 else tl.float64,
        "DOT_DTYPE": dtypes[x.dtype] if narrow else acc,
        "EXACT": B.shape[-1] == block_dstate and x.shape[-1] % 16 == 0,
        # dtype of offsets within a chunk: int64 takes several instructions for each row
        "OFFSET": tl.int32 if all(map(_fits_32_bits, (x, B, C, z, out))) else tl.int64,
    }
    most = (8192 if acc == tl.float64 else 16384) // block_dstate
    if not narrow and block_dstate > 128 and shared_memory(x.device) < AMPLE:
        # a dot holds the tile of the state in shared memory, in float32 as two parts
        most //= 2
    return constants, most


def _fits_32_bits(tensor):
    """Whether int32 holds every offset within a chunk, padded as kernels may pad it."""
    if tensor is None:
        return True
    _, token, _, channel = tensor.stride()
    return ROUND * token + 2 * max(16, tensor.shape[3]) * channel < 2**31


def _launches(headdim, most):
    """The launches for a head, each (first channel, widths of a program's tiles, blocks of channels
    side by side). As few programs as possible, of at most `most` channels, since each computes C
    B^T anew; the last program may have fewer channels."""
    blocks = triton.cdiv(headdim, most)
    width = 16 * triton.cdiv(headdim, 16 * blocks)
    if headdim % 16:
        # channels are masked at the end of the head only, so all blocks belong to one launch
        return [(0, _tile_widths(width), blocks)]
    equal, rest = divmod(headdim, width)
    launches = [(0, _tile_widths(width), equal)]
    if rest:
        launches.append((equal * width, _tile_widths(rest), 1))
    return launches


def _tile_widths(width):
    return (64,) * (width // 64) + tuple(w for w in (32, 16) if width & w)
