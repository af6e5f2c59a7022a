"""Triton kernels of `compact`: one launch each way reads every row once and writes it once.

Shapes: x (batch, seqlen, dim), dropped (batch, n) ascending. For each of its rows a program finds
by binary search how many earlier rows are dropped: the row moves forward by that many.
"""

import triton
import triton.language as tl

from tvkernels.core.tl import strides
from tvkernels.core.tune import tuned


def _configs(*rows_width_warps):
    return [
        triton.Config({"ROWS": rows, "WIDTH": width}, num_warps=warps)
        for rows, width, warps in rows_width_warps
    ]


# a program moves ROWS rows, WIDTH channels at a time. A warp of gfx942 has 64 lanes, so half as
# many warps hold a tile
CONFIGS = {
    "default": _configs((16, 512, 8), (16, 256, 4), (8, 512, 4)),
    "gfx942": _configs((16, 512, 4), (16, 256, 2)),
}


# Arguments that vary with sequence length: not specialised, so a new length does not recompile. The
# strides of x stay specialised: vector loads need their divisibility by 16.
ANY_LENGTH = ["seqlen", "n", "steps", "dropped_batch"]


@triton.jit
def _moves(dropped_ptr, seqlen, n, steps, dropped_batch, dropped_entry, ROWS: tl.constexpr):
    """For ROWS rows, each (ROWS, 1): the row; its index among the rows that stay, and whether it
    stays; its index among the rows that leave, and whether it leaves."""
    batch = tl.program_id(1).to(tl.int64)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    dropped_ptr += batch * dropped_batch
    # `left`: the number of earlier rows that leave, found bit by bit from the highest
    left = tl.zeros((ROWS,), tl.int64)
    step = tl.full((ROWS,), 1, tl.int64) << steps
    for _ in range(steps):
        step = step >> 1
        more = left + step
        inside = more <= n
        last = tl.load(dropped_ptr + (more - 1) * dropped_entry, mask=inside, other=0)
        left = tl.where(inside & (last < row), more, left)
    at = tl.load(dropped_ptr + left * dropped_entry, mask=left < n, other=-1)
    leaves = (at == row) & (row < seqlen)
    # a list that does not ascend must not write outside the results
    place = row - left
    stays = (at != row) & (row < seqlen) & (place >= 0) & (place < seqlen - n)
    return row[:, None], place[:, None], stays[:, None], left[:, None], leaves[:, None]


@tuned(CONFIGS, key=["dim"])
@triton.jit(do_not_specialize=[*ANY_LENGTH, "positions_batch"])
def compact_kernel(
    x_ptr, dropped_ptr, kept_ptr, rest_ptr, positions_ptr, moved_ptr, seqlen, dim, n, steps,
    x_batch, x_token, x_channel, dropped_batch, dropped_entry, positions_batch, positions_token,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # one program owns ROWS rows of one sequence
    batch = tl.program_id(1).to(tl.int64)
    row, place, stays, left, leaves = _moves(
        dropped_ptr, seqlen, n, steps, dropped_batch, dropped_entry, ROWS
    )
    if positions_ptr is not None:
        at = positions_ptr + batch * positions_batch + row * positions_token
        value = tl.load(at, mask=stays, other=0)
        tl.store(moved_ptr + batch * (seqlen - n) + place, value, mask=stays)
    wanted = stays
    if rest_ptr is not None:
        wanted = stays | leaves
    x_ptr += batch * x_batch + row * x_token
    kept_ptr += (batch * (seqlen - n) + place) * dim
    for start in range(0, dim, WIDTH):
        channel = (start + tl.arange(0, WIDTH)).to(tl.int64)[None, :]
        inside = channel < dim
        x = tl.load(x_ptr + channel * x_channel, mask=wanted & inside, other=0.0)
        tl.store(kept_ptr + channel, x, mask=stays & inside)
        if rest_ptr is not None:
            tl.store(rest_ptr + (batch * n + left) * dim + channel, x, mask=leaves & inside)


@tuned(CONFIGS, key=["dim"])
@triton.jit(do_not_specialize=ANY_LENGTH)
def compact_backward_kernel(
    dkept_ptr, drest_ptr, dropped_ptr, dx_ptr, seqlen, dim, n, steps,
    dkept_batch, dkept_token, dkept_channel, drest_batch, drest_token, drest_channel,
    dropped_batch, dropped_entry, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # one program owns the gradients of ROWS rows of one sequence
    batch = tl.program_id(1).to(tl.int64)
    row, place, stays, left, leaves = _moves(
        dropped_ptr, seqlen, n, steps, dropped_batch, dropped_entry, ROWS
    )
    dkept_ptr += batch * dkept_batch + place * dkept_token
    dx_ptr += (batch * seqlen + row) * dim
    for start in range(0, dim, WIDTH):
        channel = (start + tl.arange(0, WIDTH)).to(tl.int64)[None, :]
        inside = channel < dim
        dx = tl.load(dkept_ptr + channel * dkept_channel, mask=stays & inside, other=0.0)
        if drest_ptr is not None:
            at = drest_ptr + batch * drest_batch + left * drest_token + channel * drest_channel
            dx = tl.where(leaves, tl.load(at, mask=leaves & inside, other=0.0), dx)
        tl.store(dx_ptr + channel, dx, mask=(row < seqlen) & inside)


def compact_forward(x, dropped, positions, return_dropped):
    """Rows that stay, rows that leave, positions; the last two empty where they are not wanted."""
    (batch, seqlen, dim), n = x.shape, dropped.shape[1]
    kept = x.new_empty(batch, seqlen - n, dim)
    rest = x.new_empty((batch, n, dim) if return_dropped else 0)
    moved = (x if positions is None else positions).new_empty(
        0 if positions is None else (batch, seqlen - n)
    )
    if batch * seqlen:
        compact_kernel[_grid(batch, seqlen)](
            x, dropped, kept, rest if return_dropped else None, positions,
            None if positions is None else moved, seqlen, dim, n, n.bit_length(),
            *x.stride(), *dropped.stride(), *strides(positions, 2),
        )  # fmt: skip
    return kept, rest, moved


def compact_backward(dkept, drest, dropped):
    """The gradient of x; `drest` may be None."""
    (batch, left, dim), n = dkept.shape, dropped.shape[1]
    dx = dkept.new_empty(batch, left + n, dim)
    if dx.numel():
        compact_backward_kernel[_grid(batch, left + n)](
            dkept, drest, dropped, dx, left + n, dim, n, n.bit_length(),
            *dkept.stride(), *strides(drest, 3), *dropped.stride(),
        )  # fmt: skip
    return dx


def _grid(batch, seqlen):
    return lambda meta: (triton.cdiv(seqlen, meta["ROWS"]), batch)
