"""Triton engine of gated cross-attention: its launchers, and what runs in which order.

    attended = softmax(scale q k^T) v,    out = text + tanh(alpha) (attended W^T)

Few rows read very many keys, so the keys are split over programs as well (split_kernel), and a
second kernel joins the splits in their order: no sum depends on who comes first. The third is the
product with the projection W, in which the gate and the text are taken in (gate_kernel). Forward:
three launches, two where there is no projection.

With 8 key heads of 5 query heads each a question of 64 tokens makes 3 tiles of 128 rows, and 11
splits of 80,000 keys fill 264 places. Every key and value is read from memory once; the splits
leave 14 MB of float32 beside 328 MB of keys and values.

Backward (backward_kernel): y = dout W, dq by rows and splits, dk and dv by keys, W's gradient.
Products of 16 bit tensors take operands of 16 bit and add up in float32.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, strides
from tvkernels.gated_cross_attention.backward_kernel import (
    key_backward_kernel,
    query_backward_kernel,
)
from tvkernels.gated_cross_attention.gate_kernel import project_kernel
from tvkernels.gated_cross_attention.split_kernel import combine_kernel, split_kernel
from tvkernels.gated_cross_attention.tiles_kernel import owned

__all__ = ["transfer_backward", "transfer_forward"]

# programs of a launch that fill the GPU, by tiles of TILE rows; a split has at least KEYS keys.
# Constants, and not the number of processors: keys are split alike on every GPU
PROGRAMS = 264
TILE = 128
KEYS = 512
SMALL = 64


def transfer_forward(text, q, k, v, alpha, out_proj, cu_q, cu_k, scale, attended_dtype):
    """out; what was read, (tokens, nheads, headdim); the norm, (2, tokens, nheads): the greatest
    logit of each row, in base 2, and the inverse of the sum of its weights."""
    batch, n, nheads, headdim = q.shape
    wide = torch.promote_types(text.dtype, torch.float32)
    out = torch.empty_like(text, memory_format=torch.contiguous_format)
    attended = text.new_empty(batch * n, nheads, headdim, dtype=attended_dtype)
    norm = text.new_empty(2, batch * n, nheads, dtype=wide)
    if not attended.numel():
        return out.copy_(text), attended, norm
    splits, rows = _splits(q, k, cu_q), batch * n * nheads
    part = text.new_empty(splits, *attended.shape, dtype=wide)
    top, total = (text.new_empty(splits, rows, dtype=wide) for _ in range(2))
    form = _form(q, k, cu_q, scale)
    split_kernel[_grid(q, k, cu_q, splits)](
        q, k, v, cu_q, cu_k, part, top, total, *_sizes(q, k, cu_q), rows,
        _least(_rows(q, k)), *q.stride(), *k.stride(), *v.stride(), **form,
    )  # fmt: skip
    flat = text.reshape(batch * n, text.shape[2])
    bare = flat if out_proj is None else None
    tile = max(1, 1024 // form["D"])
    combine_kernel[(triton.cdiv(rows, tile),)](
        part, top, total, attended, norm, bare, alpha, out, rows, splits, nheads,
        *strides(bare, 2), HEADDIM=headdim, D=form["D"], ROWS=tile, ACC=form["ACC"],
    )  # fmt: skip
    if out_proj is not None:
        _multiply(attended.flatten(1), out_proj, out, alpha, flat)
    return out, attended, norm


def transfer_backward(dout, q, k, v, alpha, out_proj, attended, norm, cu_q, cu_k, scale):
    """Gradients of q, k, v, alpha and, where there is one, of out_proj."""
    rows = dout.reshape(attended.shape[0], dout.shape[2])
    dproj = alpha.new_empty(0) if out_proj is None else _empty_like(out_proj)
    if out_proj is None:
        y = rows.contiguous()
    else:
        y = torch.empty_like(attended.flatten(1))
        _multiply(rows, out_proj.mT, y)
        _multiply(rows.mT, attended.flatten(1).mT, dproj, alpha, over_tokens=True)
    dq, dk, dv, delta = _through_attention(q, k, v, y, attended, norm, alpha, cu_q, cu_k, scale)
    gate = alpha.to(norm.dtype).tanh()
    dalpha = ((1 - gate * gate) * delta.sum()).to(alpha.dtype)
    return dq, dk, dv, dalpha, dproj


def _through_attention(q, k, v, y, attended, norm, alpha, cu_q, cu_k, scale):
    """dq, dk, dv and the delta of every row."""
    dq, dk, dv, delta = (_empty_like(x) for x in (q, k, v, norm[0]))
    if not attended.numel():
        return dq, dk.zero_(), dv.zero_(), delta
    splits = _splits(q, k, cu_q)
    # one split leaves dq itself, more leave parts of it
    parts = dq if splits == 1 else norm.new_empty(splits, *q.shape)
    sizes, form = _sizes(q, k, cu_q), _form(q, k, cu_q, scale)
    steps = (*q.stride(), *k.stride(), *v.stride())
    query_backward_kernel[_grid(q, k, cu_q, splits)](
        q, k, v, y, attended, norm, alpha, cu_q, cu_k, parts, delta, *sizes, delta.numel(),
        _least(_rows(q, k)), *steps, **form,
    )  # fmt: skip
    key_backward_kernel[_grid(k, k, cu_k)](
        q, k, v, y, norm, delta, alpha, cu_q, cu_k, dk, dv, *sizes, delta.numel(), *steps, **form
    )
    dq = dq if splits == 1 else parts.sum(0).to(q.dtype)
    return dq, dk, dv, delta


def _multiply(a, b, out, alpha=None, text=None, over_tokens=False):
    """out = a b^T, times the gate where alpha is given, added to text where that is given. Tokens
    are the rows of a, or what the product sums over."""
    (height, depth), width = a.shape, b.shape[0]
    dtype = torch.promote_types(a.dtype, b.dtype)
    acc = accumulator(dtype)
    op = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, acc)

    def grid(meta):
        return (triton.cdiv(height, meta["ROWS"]) * triton.cdiv(width, meta["COLUMNS"]),)

    if out.numel():
        project_kernel[grid](
            a, b, text, alpha, out, *(depth, height) if over_tokens else (height, depth), width,
            _least(height), *a.stride(), *b.stride(), *strides(text, 2), OVER_TOKENS=over_tokens,
            ACC=acc, OP=op,
        )  # fmt: skip


def _rows(q, k):
    """Packed rows of each key head."""
    return q.shape[:3].numel() // k.shape[2]


def _sequences(x, cu):
    return x.shape[0] if cu is None else cu.shape[0] - 1


def _splits(q, k, cu_q):
    """Parts that the keys of a sequence are split in: of the shapes alone."""
    sequences, keys = _sequences(q, cu_q), k.shape[:2].numel()
    tiles = sequences * k.shape[2] * triton.cdiv(_rows(q, k), sequences * TILE)
    return max(1, min(PROGRAMS // tiles, keys // (sequences * KEYS)))


def _grid(own, k, cu, *more):
    """Programs (tiles, key heads, more) for tiles of the tokens of `own`, in each sequence."""
    batch, tokens, heads, headdim = own.shape
    each, D = heads // k.shape[2], _columns(headdim)

    def grid(meta):
        size = owned(meta["OWN"], D, own.element_size())
        if cu is None:
            tiles = batch * triton.cdiv(tokens * each, size)
        else:
            # one more for each sequence, whose last tile need not be full
            tiles = triton.cdiv(tokens * each, size) + cu.shape[0] - 1
        return (tiles, k.shape[2], *more)

    return grid


def _columns(headdim):
    return max(16, triton.next_power_of_2(headdim))


def _sizes(q, k, cu_q):
    return q.shape[1], k.shape[1], _sequences(q, cu_q)


def _form(q, k, cu_q, scale):
    """What the kernels are compiled for."""
    packed = 1 if cu_q is None else _sequences(q, cu_q)
    return {
        "SCALE": scale,
        "GROUP": q.shape[2] // k.shape[2],
        "HEADDIM": q.shape[3],
        "D": _columns(q.shape[3]),
        "SEQS": triton.next_power_of_2(packed),
        "ACC": accumulator(q.dtype),
    }


def _least(rows):
    """The least tile that takes all rows: few rows have a choice of configuration of their own."""
    return SMALL if rows <= SMALL else TILE


def _empty_like(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)
