"""The products with the output projection W: one in the forward, two in the backward.

    text + tanh(alpha) (attended W^T),    dout W,    tanh(alpha) (dout^T attended)

One kernel computes out = a b^T, times the gate and added to the text where they are given, and
rounds once.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import dot
from tvkernels.core.tune import dot_precision, tuned
from tvkernels.gated_cross_attention.device import gate_of, gated


def _configs(by_target):
    """ROWS and COLUMNS of the tile; DEPTH: bytes of an operand's row that a step loads."""

    def config(target, rows, columns, depth, warps, stages):
        sizes = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
        sizes["DOT_PRECISION"] = dot_precision(target)
        return triton.Config(sizes, num_warps=warps, num_stages=stages)

    return {
        target: [config(target, *form) for form in forms] for target, forms in by_target.items()
    }


CONFIGS = _configs(
    {
        "sm_120": [(64, 32, 256, 4, 3), (128, 128, 128, 8, 2)],
        "gfx942": [(64, 32, 256, 4, 2), (128, 128, 128, 8, 1)],
        "default": [(64, 32, 256, 4, 4), (128, 128, 128, 8, 3)],
    }
)


@tuned(CONFIGS, key=["width", "least"])
@triton.jit(do_not_specialize=["tokens"])
def project_kernel(
    a_ptr, b_ptr, text_ptr, alpha_ptr, out_ptr, tokens, size, width, least,
    a_row, a_depth, b_row, b_depth, text_row, text_column,
    OVER_TOKENS: tl.constexpr, ACC: tl.constexpr, DOT_DTYPE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DOT_PRECISION: tl.constexpr,
):  # fmt: skip
    # one program owns a tile of out. The row is the fastest axis: programs that read the same part
    # of b run together
    STEP: tl.constexpr = DEPTH // (DOT_DTYPE.primitive_bitwidth // 8)
    height, depth = tokens, size
    if OVER_TOKENS:
        height, depth = size, tokens
    high = tl.cdiv(height, ROWS)
    row = tl.program_id(0) % high * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) // high * COLUMNS + tl.arange(0, COLUMNS)
    row_live, column_live = (row < height)[:, None], (column < width)[None, :]
    row, column = row.to(tl.int64)[:, None], column.to(tl.int64)[None, :]
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(0, depth, STEP):
        d = start + tl.arange(0, STEP)
        live, d = d < depth, d.to(tl.int64)
        a_at = row * a_row + d[None, :] * a_depth
        b_at = column * b_row + d[:, None] * b_depth
        a = tl.load(a_ptr + a_at, mask=row_live & live[None, :], other=0.0)
        b = tl.load(b_ptr + b_at, mask=column_live & live[:, None], other=0.0)
        total = dot(a.to(DOT_DTYPE), b.to(DOT_DTYPE), total, DOT_PRECISION)
    mask = row_live & column_live
    if alpha_ptr is not None:
        gate = gate_of(alpha_ptr, ACC)
        if text_ptr is not None:
            at = row * text_row + column * text_column
            text = tl.load(text_ptr + at, mask=mask, other=0.0).to(ACC)
            total = gated(text, gate, total)
        else:
            total = gate * total
    tl.store(out_ptr + (row * width + column), total.to(out_ptr.dtype.element_ty), mask=mask)
