"""Triton engine of the causal convolution: a walk along the tokens, each input loaded once.

Shapes: x, out (batch, dim, seqlen) by any strides, weight (dim, WIDTH), states (batch, dim, WIDTH -
1). A program holds a vector of channels and walks over a span of tokens, ROWS at a time; what it
needs of the tokens before stays in registers, as tuples of vectors that hold LAG entries between
two steps. Sums are float32 (float64 for float64). The backward runs the filter again, and goes LAG
tokens past its span, since the gradient of an input is complete WIDTH - 1 tokens later.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, silu_slope, strides
from tvkernels.core.tune import tuned

# tokens of a step: `_load_rows` and `_store_rows` are written for four
ROWS = tl.constexpr(4)

# tokens of a program. The backward takes more where there are many, so that its sums for the
# weight add little to the traffic, until about LANES channels of all spans are summed alone.
# Constants, and not the number of processors: sums are cut alike on every GPU.
SPAN = 64
LANES = 1 << 21


@triton.jit
def _during(inside, t, first, stop):
    """The channels `inside`, if token t lies from `first` to before `stop`; as many lanes."""
    # a vector: the interpreter spreads a condition as the integers that it compared
    t = t + tl.zeros(inside.shape, tl.int64)
    return inside & (t >= first) & (t < stop)


@triton.jit
def _load_row(ptr, t, first, stop, stride, inside):
    """Token t of each channel, if it lies from `first` to before `stop`; else 0."""
    return tl.load(ptr + t * stride, mask=_during(inside, t, first, stop), other=0.0)


@triton.jit
def _load_rows(ptr, t, stop, stride, inside, ALONG: tl.constexpr, ACC: tl.constexpr):
    """Tokens t to t + 3 of each channel, 0 from `stop` on. ALONG: they lie side by side."""
    if ALONG:
        token = t + tl.arange(0, ROWS)
        mask = inside[:, None] & (token < stop)[None, :]
        tile = tl.load(ptr[:, None] + (token * stride)[None, :], mask=mask, other=0.0)
        even, odd = tl.split(tl.reshape(tile, (inside.shape[0], 2, 2)))
        a, c = tl.split(even)
        b, d = tl.split(odd)
    else:
        a = _load_row(ptr, t, 0, stop, stride, inside)
        b = _load_row(ptr, t + 1, 0, stop, stride, inside)
        c = _load_row(ptr, t + 2, 0, stop, stride, inside)
        d = _load_row(ptr, t + 3, 0, stop, stride, inside)
    return a.to(ACC), b.to(ACC), c.to(ACC), d.to(ACC)


@triton.jit
def _store_rows(ptr, rows, t, first, stop, stride, inside, ALONG: tl.constexpr):
    """Of tokens t to t + 3, those from `first` to before `stop`."""
    if ALONG:
        token = t + tl.arange(0, ROWS)
        mask = inside[:, None] & ((token >= first) & (token < stop))[None, :]
        pairs = tl.join(tl.join(rows[0], rows[2]), tl.join(rows[1], rows[3]))
        tile = tl.reshape(pairs, (inside.shape[0], ROWS)).to(ptr.dtype.element_ty)
        tl.store(ptr[:, None] + (token * stride)[None, :], tile, mask=mask)
    else:
        for r in tl.static_range(ROWS):
            row = rows[r].to(ptr.dtype.element_ty)
            tl.store(ptr + (t + r) * stride, row, mask=_during(inside, t + r, first, stop))


@triton.jit
def _input(
    x_ptr, before_ptr, t, seqlen, x_token, before_slot, inside,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Token t of each channel, from WIDTH - 1 tokens before the first; 0 where there is none."""
    x = _load_row(x_ptr, t, 0, seqlen, x_token, inside)
    if before_ptr is not None:
        x += _load_row(before_ptr, t + WIDTH - 1, 0, WIDTH - 1, before_slot, inside)
    return x.to(ACC)


@triton.jit
def _id(ids_ptr, t, seqlen, stride):
    """The sequence of token t; without ids all are one."""
    if ids_ptr is not None:
        found = tl.load(ids_ptr + t * stride, mask=(t >= 0) & (t < seqlen), other=-1).to(tl.int64)
    else:
        found = t * 0
    return found


@triton.jit
def _past(
    x_ptr, before_ptr, ids_ptr, first, seqlen, x_token, before_slot, ids_token, inside,
    WIDTH: tl.constexpr, LAG: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The LAG tokens before `first`, and their sequences."""
    window, ids = (), ()
    for i in tl.static_range(LAG):
        t = first - LAG + i
        window += (_input(x_ptr, before_ptr, t, seqlen, x_token, before_slot, inside, WIDTH, ACC),)
        ids += (_id(ids_ptr, t, seqlen, ids_token),)
    return window, ids


@triton.jit
def _zeros(CHANNELS: tl.constexpr, COUNT: tl.constexpr, ACC: tl.constexpr):
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors += (tl.zeros((CHANNELS,), ACC),)
    return vectors


@triton.jit
def _tap(values, ids, i: tl.constexpr, j: tl.constexpr, MASKED: tl.constexpr):
    """values[i] as token j sees it: 0 from another sequence, and for padding."""
    # not a product with 0: what stands in another sequence may be inf or nan
    value = values[i]
    if MASKED:
        value = tl.where((ids[i] == ids[j]) & (ids[j] >= 0), value, 0.0)
    return value


@triton.jit
def _filter(w_ptr, b_ptr, channel, inside, w_dim, w_tap, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """The taps, oldest first, and the bias."""
    taps = ()
    for k in tl.static_range(WIDTH):
        tap = tl.load(w_ptr + channel * w_dim + k * w_tap, mask=inside, other=0.0)
        taps += (tap.to(ACC),)
    bias = tl.zeros(inside.shape, ACC)
    if b_ptr is not None:
        bias = tl.load(b_ptr + channel, mask=inside, other=0.0).to(ACC)
    return taps, bias


@triton.jit
def _sum_of_taps(window, ids, taps, bias, at: tl.constexpr, MASKED: tl.constexpr):
    """The filter at entry `at` of the window."""
    y = bias
    for k in tl.static_range(len(taps)):
        y += taps[k] * _tap(window, ids, at - len(taps) + 1 + k, at, MASKED)
    return y


# CHANNELS: one to eight for each thread
FORWARD_CONFIGS = [
    triton.Config({"CHANNELS": 512}, num_warps=2),
    triton.Config({"CHANNELS": 256}, num_warps=2),
    triton.Config({"CHANNELS": 1024}, num_warps=4),
    triton.Config({"CHANNELS": 128}, num_warps=4),
]


@tuned(FORWARD_CONFIGS, key=["dim", "WIDTH", "ALONG"])
@triton.jit(do_not_specialize=["seqlen", "spans", "ids_batch"])
def conv_forward_kernel(
    x_ptr, w_ptr, b_ptr, ids_ptr, before_ptr, out_ptr, after_ptr,
    dim, seqlen, spans,
    x_batch: tl.int64, x_dim, x_token, w_dim, w_tap, ids_batch, ids_token,
    before_batch, before_dim, before_slot, out_batch: tl.int64, out_dim, out_token,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, LAG: tl.constexpr, SILU: tl.constexpr,
    ALONG: tl.constexpr, ACC: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # one program owns CHANNELS channels of SPAN tokens; neighbours own the neighbouring channels
    MASKED: tl.constexpr = ids_ptr is not None
    blocks = tl.cdiv(dim, CHANNELS)
    channel = (tl.program_id(0) % blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < dim
    place = (tl.program_id(0) // blocks).to(tl.int64)
    row, first = place // spans, (place % spans) * SPAN
    last = tl.minimum(first + SPAN, seqlen)
    x_ptr += row * x_batch + channel * x_dim
    out_ptr += row * out_batch + channel * out_dim
    if MASKED:
        ids_ptr += row * ids_batch
    if before_ptr is not None:
        before_ptr += row * before_batch + channel * before_dim

    taps, bias = _filter(w_ptr, b_ptr, channel, inside, w_dim, w_tap, WIDTH, ACC)
    window, ids = _past(
        x_ptr, before_ptr, ids_ptr, first, seqlen, x_token, before_slot, ids_token, inside,
        WIDTH, LAG, ACC,
    )  # fmt: skip
    for step in range(0, last - first, ROWS):
        t = first + step
        window = window + _load_rows(x_ptr, t, last, x_token, inside, ALONG, ACC)
        out = ()
        for r in tl.static_range(ROWS):
            ids += (_id(ids_ptr, t + r, seqlen, ids_token),)
            y = _sum_of_taps(window, ids, taps, bias, LAG + r, MASKED)
            if SILU:
                y = silu(y)
            if MASKED:
                y = tl.where(ids[LAG + r] < 0, 0.0, y)
            out += (y,)
        _store_rows(out_ptr, out, t, first, last, out_token, inside, ALONG)
        window, ids = window[ROWS:], ids[ROWS:]
    if after_ptr is not None:
        # the last span's programs alone
        inside = _during(inside, last, seqlen, seqlen + 1)
        for i in tl.static_range(WIDTH - 1):
            t = last - (WIDTH - 1) + i
            v = _input(x_ptr, before_ptr, t, seqlen, x_token, before_slot, inside, WIDTH, ACC)
            at = (row * (WIDTH - 1) + i) * dim + channel
            tl.store(after_ptr + at, v.to(after_ptr.dtype.element_ty), mask=inside)


def conv_forward(out, after, x, weight, bias, seq_idx, before, silu):
    """Fills out and, unless it is None, the final states `after`, whose channels lie together."""
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    spans = max(1, triton.cdiv(seqlen, SPAN))

    def grid(meta):
        return (triton.cdiv(dim, meta["CHANNELS"]) * spans * batch,)

    conv_forward_kernel[grid](
        x, weight, None if bias is None else bias.contiguous(), seq_idx, before, out, after,
        dim, seqlen, spans, *x.stride(), *weight.stride(), *strides(seq_idx, 2),
        *strides(before, 3), *out.stride(),
        WIDTH=width, SPAN=SPAN, LAG=_lag(width), SILU=silu, ALONG=_along(x),
        ACC=accumulator(x.dtype),
    )  # fmt: skip


@triton.jit
def _dsum(
    dy, window, ids, taps, bias, at: tl.constexpr, SILU: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """The gradient of the sum of taps at entry `at`, from that of the output."""
    if SILU:
        dy *= silu_slope(_sum_of_taps(window, ids, taps, bias, at, MASKED))
    if MASKED:
        dy = tl.where(ids[at] < 0, 0.0, dy)
    return dy


@triton.jit
def _dtaps(dtaps, dy, window, ids, at: tl.constexpr, MASKED: tl.constexpr):
    """The sums for the taps, and what entry `at` adds to them."""
    sums = ()
    for k in tl.static_range(len(dtaps)):
        sums += (dtaps[k] + dy * _tap(window, ids, at - len(dtaps) + 1 + k, at, MASKED),)
    return sums


@triton.jit
def _dinput(dys, ids, taps, at: tl.constexpr, MASKED: tl.constexpr):
    """The gradient of the input at entry `at`, from those of the sums that it is part of."""
    total = tl.zeros_like(taps[0])
    for k in tl.static_range(len(taps)):
        total += taps[len(taps) - 1 - k] * _tap(dys, ids, at + k, at, MASKED)
    return total


@triton.jit
def _through_states(
    dx, t, first, seqlen, dim, dafter_ptr, dbefore_ptr, dafter_slot, inside, WIDTH: tl.constexpr
):  # fmt: skip
    """dx of token t and what comes back through the final states; the initial ones' is stored."""
    if dafter_ptr is not None:
        slot = t - (seqlen - (WIDTH - 1))
        dx += _load_row(dafter_ptr, slot, 0, WIDTH - 1, dafter_slot, inside).to(dx.dtype)
    if dbefore_ptr is not None:
        # only the first span is after them
        mask = _during(inside, t, 1 - WIDTH, tl.where(first == 0, 0, -WIDTH))
        value = dx.to(dbefore_ptr.dtype.element_ty)
        tl.store(dbefore_ptr + (t + WIDTH - 1) * dim, value, mask=mask)
    return dx


# CHANNELS: one to four for each thread, which holds some twenty vectors of them
BACKWARD_CONFIGS = [
    triton.Config({"CHANNELS": 256}, num_warps=4),
    triton.Config({"CHANNELS": 512}, num_warps=4),
    triton.Config({"CHANNELS": 128}, num_warps=2),
    triton.Config({"CHANNELS": 128}, num_warps=4),
]


@tuned(BACKWARD_CONFIGS, key=["dim", "WIDTH", "ALONG"])
@triton.jit(do_not_specialize=["seqlen", "spans", "span", "ids_batch"])
def conv_backward_kernel(
    x_ptr, w_ptr, b_ptr, ids_ptr, before_ptr, dout_ptr, dafter_ptr, dx_ptr, dbefore_ptr, dw_ptr,
    dim, seqlen, spans, span,
    x_batch: tl.int64, x_dim, x_token, w_dim, w_tap, ids_batch, ids_token,
    before_batch, before_dim, before_slot, dout_batch: tl.int64, dout_dim, dout_token,
    dafter_batch, dafter_dim, dafter_slot, dx_batch: tl.int64, dx_dim, dx_token,
    WIDTH: tl.constexpr, LAG: tl.constexpr, SILU: tl.constexpr,
    ALONG: tl.constexpr, ACC: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    # one program owns CHANNELS channels of `span` tokens, and their sums for weight and bias
    MASKED: tl.constexpr = ids_ptr is not None
    blocks = tl.cdiv(dim, CHANNELS)
    channel = (tl.program_id(0) % blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < dim
    place = (tl.program_id(0) // blocks).to(tl.int64)
    row, first = place // spans, (place % spans) * span
    last = tl.minimum(first + span, seqlen)
    x_ptr += row * x_batch + channel * x_dim
    dout_ptr += row * dout_batch + channel * dout_dim
    dx_ptr += row * dx_batch + channel * dx_dim
    if MASKED:
        ids_ptr += row * ids_batch
    if before_ptr is not None:
        before_ptr += row * before_batch + channel * before_dim
        dbefore_ptr += row * (WIDTH - 1) * dim + channel
    if dafter_ptr is not None:
        dafter_ptr += row * dafter_batch + channel * dafter_dim

    taps, bias = _filter(w_ptr, b_ptr, channel, inside, w_dim, w_tap, WIDTH, ACC)
    window, ids = _past(
        x_ptr, before_ptr, ids_ptr, first, seqlen, x_token, before_slot, ids_token, inside,
        WIDTH, LAG, ACC,
    )  # fmt: skip
    dys, dtaps = _zeros(CHANNELS, LAG, ACC), _zeros(CHANNELS, WIDTH, ACC)
    dbias = tl.zeros((CHANNELS,), ACC)
    for step in range(0, last - first + LAG, ROWS):
        t = first + step
        window = window + _load_rows(x_ptr, t, seqlen, x_token, inside, ALONG, ACC)
        dout = _load_rows(dout_ptr, t, seqlen, dout_token, inside, ALONG, ACC)
        for r in tl.static_range(ROWS):
            ids += (_id(ids_ptr, t + r, seqlen, ids_token),)
            dy = _dsum(dout[r], window, ids, taps, bias, LAG + r, SILU, MASKED)
            dys += (dy,)
            # those past the span are summed by its neighbour
            dy = tl.where(t + r < last, dy, 0.0)
            dbias += dy
            dtaps = _dtaps(dtaps, dy, window, ids, LAG + r, MASKED)
        dx = ()
        for r in tl.static_range(ROWS):
            v = _through_states(
                _dinput(dys, ids, taps, r, MASKED), t - LAG + r, first, seqlen, dim,
                dafter_ptr, dbefore_ptr, dafter_slot, inside, WIDTH,
            )  # fmt: skip
            dx += (v,)
        _store_rows(dx_ptr, dx, t - LAG, first, last, dx_token, inside, ALONG)
        window, ids, dys = window[ROWS:], ids[ROWS:], dys[ROWS:]

    if b_ptr is not None:
        dtaps += (dbias,)
    dw_ptr += place * len(dtaps) * dim + channel
    for k in tl.static_range(len(dtaps)):
        tl.store(dw_ptr + k * dim, dtaps[k], mask=inside)


def conv_backward(dx, dbefore, dout, dafter, x, weight, bias, seq_idx, before, silu):
    """Fills dx and, unless it is None, dbefore, whose channels lie together; gives the gradients
    of the weight and, if there is one, of the bias, (width or width + 1, dim), in a wide dtype."""
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    parts = max(1, LANES // max(1, dim))
    span = max(SPAN, ROWS.value * triton.cdiv(batch * seqlen, ROWS.value * parts))
    spans = max(1, triton.cdiv(seqlen, span))
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = torch.empty(batch * spans, width + (bias is not None), dim, dtype=wide, device=x.device)

    def grid(meta):
        return (triton.cdiv(dim, meta["CHANNELS"]) * spans * batch,)

    conv_backward_kernel[grid](
        x, weight, None if bias is None else bias.contiguous(), seq_idx, before, dout, dafter,
        dx, dbefore, sums, dim, seqlen, spans, span, *x.stride(), *weight.stride(),
        *strides(seq_idx, 2), *strides(before, 3), *dout.stride(), *strides(dafter, 3),
        *dx.stride(),
        WIDTH=width, LAG=_lag(width), SILU=silu, ALONG=_along(x), ACC=accumulator(x.dtype),
    )  # fmt: skip
    return sums.sum(0)


def _lag(width):
    """Whole steps that hold the width - 1 tokens before one."""
    return ROWS.value * triton.cdiv(width - 1, ROWS.value)


def _along(x):
    """Whether the tokens of a channel lie side by side, and the channels of a token do not."""
    return x.stride(2) == 1 and x.stride(1) != 1
