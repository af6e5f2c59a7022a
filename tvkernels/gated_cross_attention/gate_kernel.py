"""The products with the output's projection: of its way in and of both ways back.

    text + tanh(alpha) (attended W^T),    dout W,    tanh(alpha) (dout^T attended)

One kernel: out = a b^T, and where given times the gate, and added to the text, in one rounding.
"""

import triton
import triton.language as tl

from tvkernels.core.tune import tuned
from tvkernels.gated_cross_attention.tiles_kernel import gate_of, gated, product


def _configs(by_target):
    """ROWS and COLUMNS of the tile; DEPTH: bytes of its operands' rows that a step takes."""
    return {
        target: [
            triton.Config(
                {
                    "ROWS": rows,
                    "COLUMNS": columns,
                    "DEPTH": depth,
                    "DOT": "ieee" if target == "gfx942" else "tf32x3",
                },
                num_warps=warps,
                num_stages=stages,
            )
            for rows, columns, depth, warps, stages in forms
        ]
        for target, forms in by_target.items()
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
    OVER_TOKENS: tl.constexpr, ACC: tl.constexpr, OP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # one program: a tile of out. Tiles of one column fastest: they read the same part of b
    STEP: tl.constexpr = DEPTH // (OP.primitive_bitwidth // 8)
    height, depth = tokens, size
    if OVER_TOKENS:
        height, depth = size, tokens
    high = tl.cdiv(height, ROWS)
    row = tl.program_id(0) % high * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) // high * COLUMNS + tl.arange(0, COLUMNS)
    row_there, column_there = (row < height)[:, None], (column < width)[None, :]
    row, column = row.to(tl.int64)[:, None], column.to(tl.int64)[None, :]
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(0, depth, STEP):
        d = start + tl.arange(0, STEP)
        there, d = d < depth, d.to(tl.int64)
        a_at = row * a_row + d[None, :] * a_depth
        b_at = column * b_row + d[:, None] * b_depth
        a = tl.load(a_ptr + a_at, mask=row_there & there[None, :], other=0.0)
        b = tl.load(b_ptr + b_at, mask=column_there & there[:, None], other=0.0)
        total = product(a.to(OP), b.to(OP), total, DOT)
    mask = row_there & column_there
    if alpha_ptr is not None:
        gate = gate_of(alpha_ptr, ACC)
        if text_ptr is not None:
            at = row * text_row + column * text_column
            text = tl.load(text_ptr + at, mask=mask, other=0.0).to(ACC)
            total = gated(text, gate, total)
        else:
            total = gate * total
    tl.store(out_ptr + (row * width + column), total.to(out_ptr.dtype.element_ty), mask=mask)
