"""Triton kernels of the norms: one pass over memory each way, everything else in registers.

Shapes: rows of `dim` = groups x SIZE channels, as (outer, inner, dim) with any strides. A group is
held as two tiles, MAIN = the largest power of two below SIZE and TAIL = the rest rounded up to a
power of two (1280 = 1024 + 256, 4480 = 4096 + 512), so that few lanes are idle. Sums are float32
(float64 for float64). The forward saves no statistics: the backward holds a row anyway and
recomputes them.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, silu_slope, strides
from tvkernels.core.tune import tuned

# GATE: whether silu(z) multiplies the input of the norm or its output
NO_GATE, GATE_FIRST, GATE_AFTER = (tl.constexpr(i) for i in range(3))

# The backward's sums over rows: each program takes at least SPAN rows, so that storing its partial
# sums adds little traffic, and about PROGRAMS programs run. They are constants, not the number of
# multiprocessors: every GPU splits the sums, and so rounds, alike.
SPAN = 16
PROGRAMS = 2048


@triton.jit
def _row_starts(row, inner, stride_outer, stride_row, FLAT: tl.constexpr):
    """Offset of each row, (ROWS, 1). FLAT: all rows are one stride apart, so no division."""
    if FLAT:
        return (row * stride_row)[:, None]
    return ((row // inner) * stride_outer + (row % inner) * stride_row)[:, None]


@triton.jit
def _store(ptr, at, value, mask):
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _value(
    x_ptr, z_ptr, r_ptr, total_ptr, x_at, z_at, r_at, at, mask,
    GATE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Input of the norm: x, x * silu(z), or the rounded x + residual, which is also stored."""
    v = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(ACC)
    if r_ptr is not None:
        v += tl.load(r_ptr + r_at, mask=mask, other=0.0).to(ACC)
        total = v.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at, total, mask=mask)
        v = total.to(ACC)
    if GATE == GATE_FIRST:
        v *= silu(tl.load(z_ptr + z_at, mask=mask, other=0.0).to(ACC))
    return v


@triton.jit
def _mean(a, b, SIZE: tl.constexpr):
    """Row means over both tiles, (ROWS, 1)."""
    return ((tl.sum(a, 1) + tl.sum(b, 1)) / SIZE)[:, None]


@triton.jit
def _normed(v0, v1, in0, in1, live, eps, SIZE: tl.constexpr, CENTER: tl.constexpr):
    """Both tiles normed, 0 in the lanes beyond the group, and 1 / rms; rows past the end stay
    finite."""
    if CENTER:
        mean = _mean(v0, v1, SIZE)
        v0 = tl.where(in0, v0 - mean, 0.0)
        v1 = tl.where(in1, v1 - mean, 0.0)
    square = tl.where(live, _mean(v0 * v0, v1 * v1, SIZE) + eps, 1.0)
    rstd = 1.0 / tl.sqrt(square)
    return v0 * rstd, v1 * rstd, rstd


@triton.jit
def _finish(
    n, w_ptr, b_ptr, z_ptr, out_ptr, column, within, z_at, at, mask,
    GATE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    y = n * tl.load(w_ptr + column, mask=within, other=0.0).to(ACC)
    if b_ptr is not None:
        y += tl.load(b_ptr + column, mask=within, other=0.0).to(ACC)
    if GATE == GATE_AFTER:
        y *= silu(tl.load(z_ptr + z_at, mask=mask, other=0.0).to(ACC))
    _store(out_ptr, at, y, mask)


def _configs(*tiles_and_warps):
    return [triton.Config({"TILE": tile}, num_warps=warps) for tile, warps in tiles_and_warps]


# TILE: channels times rows that a program holds in MAIN at a time; at least one row. sm_120 runs 48
# warps at once, not 64, and has no configuration of 16 warps: too few such blocks fit. A warp of
# gfx942 has 64 lanes, so half as many warps hold a tile
FORWARD_CONFIGS = {
    "default": _configs((2048, 4), (1024, 4), (4096, 8), (8192, 8), (8192, 16)),
    "sm_120": _configs((2048, 4), (1024, 4), (4096, 8), (8192, 8)),
    "gfx942": _configs((2048, 2), (2048, 4), (4096, 4), (8192, 4), (8192, 8)),
}


@tuned(FORWARD_CONFIGS, key=["SIZE", "dim"])
@triton.jit(do_not_specialize=["rows", "inner"])
def norm_forward_kernel(
    x_ptr, z_ptr, r_ptr, w_ptr, b_ptr, out_ptr, total_ptr,
    rows, inner, dim, eps,
    x_outer: tl.int64, x_row, x_channel, z_outer: tl.int64, z_row, z_channel,
    r_outer: tl.int64, r_row, r_channel,
    SIZE: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, FLAT: tl.constexpr,
    GATE: tl.constexpr, CENTER: tl.constexpr, ACC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # one program owns one group of channels of ROWS rows; the next one owns the next group
    ROWS: tl.constexpr = min(16, max(1, TILE // MAIN))
    groups = dim // SIZE
    first = (tl.program_id(0) % groups) * SIZE
    row = (tl.program_id(0) // groups).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = (row < rows)[:, None]
    in0 = tl.arange(0, MAIN)[None, :] < SIZE
    in1 = MAIN + tl.arange(0, TAIL)[None, :] < SIZE
    c0 = (first + tl.arange(0, MAIN)).to(tl.int64)[None, :]
    c1 = (first + MAIN + tl.arange(0, TAIL)).to(tl.int64)[None, :]
    x_at = _row_starts(row, inner, x_outer, x_row, FLAT)
    z_at = _row_starts(row, inner, z_outer, z_row, FLAT)
    r_at = _row_starts(row, inner, r_outer, r_row, FLAT)
    at = (row * dim)[:, None]

    v0 = _value(
        x_ptr, z_ptr, r_ptr, total_ptr,
        x_at + c0 * x_channel, z_at + c0 * z_channel, r_at + c0 * r_channel, at + c0,
        live & in0, GATE, ACC,
    )  # fmt: skip
    v1 = _value(
        x_ptr, z_ptr, r_ptr, total_ptr,
        x_at + c1 * x_channel, z_at + c1 * z_channel, r_at + c1 * r_channel, at + c1,
        live & in1, GATE, ACC,
    )  # fmt: skip
    n0, n1, _ = _normed(v0, v1, in0, in1, live, eps, SIZE, CENTER)
    _finish(
        n0, w_ptr, b_ptr, z_ptr, out_ptr, c0, in0, z_at + c0 * z_channel, at + c0, live & in0,
        GATE, ACC,
    )  # fmt: skip
    _finish(
        n1, w_ptr, b_ptr, z_ptr, out_ptr, c1, in1, z_at + c1 * z_channel, at + c1, live & in1,
        GATE, ACC,
    )  # fmt: skip


def norm_forward(x, weight, bias, z, residual, eps, group_size, norm_before_gate, is_rms_norm):
    """out, and x + residual (None without a residual)."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = None if residual is None else torch.empty_like(out)
    (x_, z_, r_), outer, inner, flat = _as_rows(x, z, residual)
    rows, dim = outer * inner, x.shape[-1]
    main, tail = _tiles(group_size)

    def grid(meta):
        return (triton.cdiv(rows, min(16, max(1, meta["TILE"] // main))) * (dim // group_size),)

    norm_forward_kernel[grid](
        x_, z_, r_, weight.contiguous(), None if bias is None else bias.contiguous(), out, total,
        rows, inner, dim, eps, *strides(x_, 3), *strides(z_, 3), *strides(r_, 3),
        SIZE=group_size, MAIN=main, TAIL=tail, FLAT=flat, GATE=_gate(z, norm_before_gate),
        CENTER=not is_rms_norm, ACC=accumulator(x.dtype),
    )  # fmt: skip
    return out, total


@triton.jit
def _through_gate(n, w, b, z, dout, GATE: tl.constexpr):
    """The gradient of n * w + b, and of z when the gate came after the norm."""
    dz = dout
    if GATE == GATE_AFTER:
        dz = dout * (n * w + b) * silu_slope(z)
        dout = dout * silu(z)
    return dout, dz


@triton.jit
def _to_inputs(dv, dz, x, z, more_ptr, dx_ptr, dz_ptr, more_at, at, mask, GATE: tl.constexpr):
    if GATE == GATE_FIRST:
        dz = dv * x * silu_slope(z)
        dv = dv * silu(z)
    if more_ptr is not None:
        dv += tl.load(more_ptr + more_at, mask=mask, other=0.0).to(dv.dtype)
    _store(dx_ptr, at, dv, mask)
    if dz_ptr is not None:
        _store(dz_ptr, at, dz, mask)


@triton.jit
def _vector(ptr, column, within, ACC: tl.constexpr):
    """weight or bias of a tile, (1, WIDTH); zeros for none."""
    vector = tl.zeros_like(column).to(ACC)
    if ptr is not None:
        vector = tl.load(ptr + column, mask=within, other=0.0).to(ACC)
    return vector


@triton.jit
def _loaded(
    x_ptr, z_ptr, dout_ptr, x_at, z_at, dout_at, mask, GATE: tl.constexpr, ACC: tl.constexpr
):
    """x, the input of the norm, z and dout of a tile."""
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(ACC)
    dout = tl.load(dout_ptr + dout_at, mask=mask, other=0.0).to(ACC)
    z = x
    v = x
    if GATE != NO_GATE:
        z = tl.load(z_ptr + z_at, mask=mask, other=0.0).to(ACC)
    if GATE == GATE_FIRST:
        v = x * silu(z)
    return x, v, z, dout


BACKWARD_CONFIGS = {
    "default": _configs((1024, 8), (1024, 4), (2048, 8), (2048, 16)),
    "sm_120": _configs((1024, 8), (1024, 4), (2048, 8)),
    "gfx942": _configs((1024, 4), (1024, 2), (2048, 4), (2048, 8)),
}


@tuned(BACKWARD_CONFIGS, key=["SIZE", "dim"])
@triton.jit(do_not_specialize=["rows", "inner", "span"])
def norm_backward_kernel(
    x_ptr, z_ptr, w_ptr, b_ptr, dout_ptr, more_ptr, dx_ptr, dz_ptr, dw_ptr, db_ptr,
    rows, inner, dim, span, eps,
    x_outer: tl.int64, x_row, x_channel, z_outer: tl.int64, z_row, z_channel,
    dout_outer: tl.int64, dout_row, dout_channel, more_outer: tl.int64, more_row, more_channel,
    SIZE: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, FLAT: tl.constexpr,
    GATE: tl.constexpr, CENTER: tl.constexpr, ACC: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # one program owns one group of channels of `span` rows, and their sums for dweight and dbias
    ROWS: tl.constexpr = min(16, max(1, TILE // MAIN))
    groups = dim // SIZE
    first = (tl.program_id(0) % groups) * SIZE
    part = (tl.program_id(0) // groups).to(tl.int64)
    in0 = tl.arange(0, MAIN)[None, :] < SIZE
    in1 = MAIN + tl.arange(0, TAIL)[None, :] < SIZE
    c0 = (first + tl.arange(0, MAIN)).to(tl.int64)[None, :]
    c1 = (first + MAIN + tl.arange(0, TAIL)).to(tl.int64)[None, :]
    w0, w1 = _vector(w_ptr, c0, in0, ACC), _vector(w_ptr, c1, in1, ACC)
    b0, b1 = _vector(b_ptr, c0, in0, ACC), _vector(b_ptr, c1, in1, ACC)
    dw0, dw1 = tl.zeros((1, MAIN), ACC), tl.zeros((1, TAIL), ACC)
    db0, db1 = tl.zeros((1, MAIN), ACC), tl.zeros((1, TAIL), ACC)
    last = tl.minimum((part + 1) * span, rows)
    for start in range(part * span, last, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        live = (row < last)[:, None]
        x_at = _row_starts(row, inner, x_outer, x_row, FLAT)
        z_at = _row_starts(row, inner, z_outer, z_row, FLAT)
        dout_at = _row_starts(row, inner, dout_outer, dout_row, FLAT)
        more_at = _row_starts(row, inner, more_outer, more_row, FLAT)
        at = (row * dim)[:, None]

        x0, v0, z0, dout0 = _loaded(
            x_ptr, z_ptr, dout_ptr,
            x_at + c0 * x_channel, z_at + c0 * z_channel, dout_at + c0 * dout_channel,
            live & in0, GATE, ACC,
        )  # fmt: skip
        x1, v1, z1, dout1 = _loaded(
            x_ptr, z_ptr, dout_ptr,
            x_at + c1 * x_channel, z_at + c1 * z_channel, dout_at + c1 * dout_channel,
            live & in1, GATE, ACC,
        )  # fmt: skip
        n0, n1, rstd = _normed(v0, v1, in0, in1, live, eps, SIZE, CENTER)
        dy0, dz0 = _through_gate(n0, w0, b0, z0, dout0, GATE)
        dy1, dz1 = _through_gate(n1, w1, b1, z1, dout1, GATE)
        dw0 += tl.sum(dy0 * n0, 0)[None, :]
        dw1 += tl.sum(dy1 * n1, 0)[None, :]
        if db_ptr is not None:
            db0 += tl.sum(dy0, 0)[None, :]
            db1 += tl.sum(dy1, 0)[None, :]
        dn0, dn1 = dy0 * w0, dy1 * w1
        along = _mean(dn0 * n0, dn1 * n1, SIZE)
        dv0, dv1 = dn0 - n0 * along, dn1 - n1 * along
        if CENTER:
            mean = _mean(dn0, dn1, SIZE)
            dv0, dv1 = dv0 - mean, dv1 - mean
        _to_inputs(
            dv0 * rstd, dz0, x0, z0, more_ptr, dx_ptr, dz_ptr, more_at + c0 * more_channel, at + c0,
            live & in0, GATE,
        )  # fmt: skip
        _to_inputs(
            dv1 * rstd, dz1, x1, z1, more_ptr, dx_ptr, dz_ptr, more_at + c1 * more_channel, at + c1,
            live & in1, GATE,
        )  # fmt: skip
    tl.store(dw_ptr + part * dim + c0, dw0, mask=in0)
    tl.store(dw_ptr + part * dim + c1, dw1, mask=in1)
    if db_ptr is not None:
        tl.store(db_ptr + part * dim + c0, db0, mask=in0)
        tl.store(db_ptr + part * dim + c1, db1, mask=in1)


def norm_backward(dout, x, weight, bias, z, more, eps, group_size, norm_before_gate, is_rms_norm):
    """dx + more, dweight, dbias and dz, the last two None where there is no bias, no z."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    (x_, z_, dout_, more_), outer, inner, flat = _as_rows(x, z, dout, more)
    rows, dim = outer * inner, x.shape[-1]
    main, tail = _tiles(group_size)
    groups = dim // group_size
    span = SPAN * max(1, triton.cdiv(rows * groups, PROGRAMS * SPAN))
    parts = triton.cdiv(rows, span)
    wide = torch.promote_types(x.dtype, torch.float32)
    dweight = torch.empty(parts, dim, dtype=wide, device=x.device)
    dbias = None if bias is None else torch.empty_like(dweight)
    norm_backward_kernel[(parts * groups,)](
        x_, z_, weight.contiguous(), None if bias is None else bias.contiguous(), dout_, more_,
        dx, dz, dweight, dbias, rows, inner, dim, span, eps,
        *strides(x_, 3), *strides(z_, 3), *strides(dout_, 3), *strides(more_, 3),
        SIZE=group_size, MAIN=main, TAIL=tail, FLAT=flat, GATE=_gate(z, norm_before_gate),
        CENTER=not is_rms_norm, ACC=accumulator(x.dtype),
    )  # fmt: skip
    dweight = dweight.sum(0).to(weight.dtype)
    return dx, dweight, None if dbias is None else dbias.sum(0).to(bias.dtype), dz


def _gate(z, norm_before_gate):
    if z is None:
        return NO_GATE.value
    return GATE_AFTER.value if norm_before_gate else GATE_FIRST.value


def _tiles(size):
    """MAIN and TAIL: powers of two, MAIN < size <= MAIN + TAIL where size > 1."""
    main = max(1, triton.next_power_of_2(size) // 2)
    return main, triton.next_power_of_2(max(1, size - main))


def _as_rows(*tensors):
    """Views (outer, inner, dim) of the tensors, and whether all rows are one stride apart.

    A tensor with more leading dimensions than that, which no single stride joins, is copied.
    """
    shape = tensors[0].shape
    inner = shape[-2] if len(shape) > 1 else 1
    outer = shape[:-2].numel()
    views = [None if t is None else t.reshape(outer, inner, shape[-1]) for t in tensors]
    flat = all(
        t is None or outer == 1 or inner == 1 or t.stride(0) == inner * t.stride(1) for t in views
    )
    if flat and inner == 1:
        views = [None if t is None else t.transpose(0, 1) for t in views]
        return views, 1, outer, True
    return views, outer, inner, flat
