"""Triton kernels of relu(x)^2: each element is read once and written once.

Shapes: (rows, cols), where a row is the longest run that is contiguous in all tensors of a call, in
the memory order of its result. A dense tensor is one row, a slice of a wider tensor many.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator
from tvkernels.core.tune import tuned

# most columns of a program
WIDEST = 8192


def _configs(*tiles_and_warps):
    return [triton.Config({"TILE": tile}, num_warps=warps) for tile, warps in tiles_and_warps]


# TILE: elements of a program. A warp of gfx942 has 64 lanes, so half as many warps hold a tile
CONFIGS = {
    "default": _configs((2048, 4), (1024, 4), (4096, 8), (8192, 8)),
    "gfx942": _configs((2048, 2), (1024, 2), (4096, 4), (8192, 4)),
}


@triton.jit
def _tile(rows, cols, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Row (ROWS, 1) and column (1, COLS) of this program's elements, and which of them exist."""
    COLS: tl.constexpr = min(WIDTH, TILE)
    ROWS: tl.constexpr = TILE // COLS
    across = tl.cdiv(cols, COLS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = (tl.program_id(0) % across).to(tl.int64) * COLS + tl.arange(0, COLS)[None, :]
    return row, col, (row < rows) & (col < cols)


@tuned(CONFIGS, key=["WIDTH"])
@triton.jit(do_not_specialize=["rows"])
def relu2_forward_kernel(
    x_ptr, y_ptr, rows, cols: tl.int64, x_row: tl.int64, x_col,
    WIDTH: tl.constexpr, ACC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # one program owns TILE neighbouring elements of the result
    row, col, mask = _tile(rows, cols, WIDTH, TILE)
    x = tl.load(x_ptr + row * x_row + col * x_col, mask=mask, other=0.0).to(ACC)
    # x <= 0 is false for NaN, so NaN stays NaN
    y = tl.where(x <= 0, 0.0, x * x)
    tl.store(y_ptr + row * cols + col, y.to(y_ptr.dtype.element_ty), mask=mask)


@tuned(CONFIGS, key=["WIDTH"])
@triton.jit(do_not_specialize=["rows"])
def relu2_backward_kernel(
    dy_ptr, x_ptr, dx_ptr, rows, cols: tl.int64, dy_row: tl.int64, dy_col, x_row: tl.int64, x_col,
    WIDTH: tl.constexpr, ACC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # one program owns TILE neighbouring elements of the gradient
    row, col, mask = _tile(rows, cols, WIDTH, TILE)
    x = tl.load(x_ptr + row * x_row + col * x_col, mask=mask, other=0.0).to(ACC)
    dy = tl.load(dy_ptr + row * dy_row + col * dy_col, mask=mask, other=0.0).to(ACC)
    dx = tl.where(x <= 0, 0.0, 2 * x * dy)
    tl.store(dx_ptr + row * cols + col, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def relu2_forward(x):
    y = torch.empty_like(x)
    if y.numel():
        (x,), width, grid = _plan(y, x)
        relu2_forward_kernel[grid](
            x, y, *x.shape, *x.stride(), WIDTH=width, ACC=accumulator(x.dtype)
        )
    return y


def relu2_backward(dy, x):
    dx = torch.empty_like(x)
    if dx.numel():
        (dy, x), width, grid = _plan(dx, dy, x)
        relu2_backward_kernel[grid](
            dy, x, dx, *x.shape, *dy.stride(), *x.stride(), WIDTH=width, ACC=accumulator(x.dtype)
        )
    return dx


def _plan(out, *tensors):
    """The tensors as rows, the most columns of a program, and the grid."""
    views = _as_rows(out, *tensors)
    rows, cols = views[0].shape
    width = min(WIDEST, triton.next_power_of_2(cols))

    def grid(meta):
        across = min(width, meta["TILE"])
        return (triton.cdiv(rows, meta["TILE"] // across) * triton.cdiv(cols, across),)

    return views, width, grid


def _as_rows(out, *tensors):
    """Views (rows, cols) of the tensors, in which the dense `out` is contiguous.

    A tensor whose dimensions no single stride joins into rows is copied.
    """
    out, *views = (t.squeeze() for t in (out, *tensors))
    order = sorted(range(out.ndim), key=out.stride, reverse=True)
    views = [t.permute(order) for t in views]
    shape = views[0].shape
    # a new row begins where a dimension does not continue the run of the one after it
    breaks = (
        i for t in views for i in range(1, t.ndim) if t.stride(i - 1) != t.stride(i) * shape[i]
    )
    split = max(breaks, default=0)
    return [t.reshape(shape[:split].numel(), shape[split:].numel()) for t in views]
