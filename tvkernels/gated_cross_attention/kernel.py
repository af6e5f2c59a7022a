"""Triton kernels of gated cross-attention: the launchers, and the order of the launches.

    attended = softmax(scale q k^T) v,    out = text + tanh(alpha) (attended W^T)

Few rows read very many keys, so the keys are split over programs too (split_kernel.py). A second
kernel adds up the splits in their order, so the result does not depend on timing. The third
multiplies by the projection W and applies the gate and the text (gate_kernel.py). The forward is
three launches, two without a projection.

With 8 key heads of 5 query heads each, a question of 64 tokens makes 3 tiles of 128 rows, and 11
splits of 80,000 keys give 264 programs. Every key and value is read from memory once; the splits
write 14 MB of float32 beside 328 MB of keys and values.

Backward (backward_kernel.py): y = dout W, dq by rows and splits, dk and dv by keys, W's gradient.
Dots of 16 bit tensors take 16 bit operands and accumulate in float32.
"""

import torch
import triton

from tvkernels.core.tl import accumulator, dot_dtype, owned, strides
from tvkernels.gated_cross_attention.backward_kernel import (
    key_backward_kernel,
    query_backward_kernel,
)
from tvkernels.gated_cross_attention.gate_kernel import project_kernel
from tvkernels.gated_cross_attention.split_kernel import combine_kernel, split_kernel

__all__ = ["transfer_backward", "transfer_forward"]

# Programs that a launch should have to fill the GPU, and the fewest keys of a split. They are
# constants, not the number of multiprocessors: every GPU splits the keys, and so rounds, alike.
PROGRAMS = 264
KEYS = 512
# rows of a tile, and of the tile for few rows
TILE = 128
SMALL = 64


def transfer_forward(text, q, k, v, alpha, out_proj, cu_q, cu_k, scale, attended_dtype):
    """out; what was read, (tokens, nheads, headdim); the norm, (2, tokens, nheads): each row's
    largest logit, in base 2, and 1 / (sum of its powers)."""
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
    """Gradients of q, k, v, alpha and out_proj, the last without elements where there is none."""
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
    # a single split writes dq itself, several write float32 parts of it
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
    are the rows of a or, with over_tokens, the dimension that the product sums over."""
    (height, depth), width = a.shape, b.shape[0]

    def grid(meta):
        return (triton.cdiv(height, meta["ROWS"]) * triton.cdiv(width, meta["COLUMNS"]),)

    if out.numel():
        project_kernel[grid](
            a, b, text, alpha, out, *(depth, height) if over_tokens else (height, depth), width,
            _least(height), *a.stride(), *b.stride(), *strides(text, 2), OVER_TOKENS=over_tokens,
            ACC=accumulator(a.dtype, b.dtype), DOT_DTYPE=dot_dtype(a.dtype, b.dtype),
        )  # fmt: skip


def _rows(q, k):
    """Packed rows of each key head: tokens times query heads that share it."""
    return q.shape[:3].numel() // k.shape[2]


def _sequences(x, cu):
    return x.shape[0] if cu is None else cu.shape[0] - 1


def _splits(q, k, cu_q):
    """Number of splits of a sequence's keys; depends on shapes alone."""
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
            # one more tile for each sequence: its last tile need not be full
            tiles = triton.cdiv(tokens * each, size) + cu.shape[0] - 1
        return (tiles, k.shape[2], *more)

    return grid


def _columns(headdim):
    return max(16, triton.next_power_of_2(headdim))


def _sizes(q, k, cu_q):
    return q.shape[1], k.shape[1], _sequences(q, cu_q)


def _form(q, k, cu_q, scale):
    """The kernels' constexpr arguments."""
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
    """The smallest tile that holds all rows. In the tuning key: few rows are tuned separately."""
    return SMALL if rows <= SMALL else TILE


def _empty_like(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)
