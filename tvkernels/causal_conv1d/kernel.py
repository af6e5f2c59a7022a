"""The causal convolution on Triton: programs loop over the tokens and load each input once.

Shapes: x, out (batch, dim, seqlen) by any strides, weight (dim, WIDTH), states (batch, dim, WIDTH -
1). A program owns a vector of channels over a span of tokens and takes ROWS tokens per iteration.
The tokens that its taps reach back to stay in registers, a tuple of LAG vectors between two
iterations. Sums are float32 (float64 for float64). The backward computes the filter again and goes
LAG tokens past its span, because an input's gradient is complete only WIDTH - 1 tokens later.
"""

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator, silu, silu_slope, strides
from tvkernels.core.tune import tuned

# tokens of an iteration; `_load_rows` and `_store_rows` are written for four
ROWS = tl.constexpr(4)

# SPAN: tokens of a program. The backward makes spans longer for long inputs, until dim times the
# number of spans is about LANES, so that its partial sums for the weight add little traffic.
# Constants, not the number of processors, so that sums are divided alike on every GPU
SPAN = 64
LANES = 1 << 21


@triton.jit
def _at_token(in_dim, t, first, stop):
    """in_dim where first <= t < stop, else false."""
    # t as a vector: the interpreter would broadcast a scalar condition as the compared integers
    t = t + tl.zeros(in_dim.shape, tl.int64)
    return in_dim & (t >= first) & (t < stop)


@triton.jit
def _load_row(ptr, t, first, stop, stride, in_dim):
    """Token t of each channel if first <= t < stop, else 0."""
    return tl.load(ptr + t * stride, mask=_at_token(in_dim, t, first, stop), other=0.0)


@triton.jit
def _load_rows(ptr, t, stop, stride, in_dim, CHANNEL_FIRST: tl.constexpr, ACC: tl.constexpr):
    """Tokens t to t + 3 of each channel, 0 from `stop` on."""
    if CHANNEL_FIRST:
        token = t + tl.arange(0, ROWS)
        mask = in_dim[:, None] & (token < stop)[None, :]
        tile = tl.load(ptr[:, None] + (token * stride)[None, :], mask=mask, other=0.0)
        even, odd = tl.split(tl.reshape(tile, (in_dim.shape[0], 2, 2)))
        a, c = tl.split(even)
        b, d = tl.split(odd)
    else:
        a = _load_row(ptr, t, 0, stop, stride, in_dim)
        b = _load_row(ptr, t + 1, 0, stop, stride, in_dim)
        c = _load_row(ptr, t + 2, 0, stop, stride, in_dim)
        d = _load_row(ptr, t + 3, 0, stop, stride, in_dim)
    return a.to(ACC), b.to(ACC), c.to(ACC), d.to(ACC)


@triton.jit
def _store_rows(ptr, rows, t, first, stop, stride, in_dim, CHANNEL_FIRST: tl.constexpr):
    """Stores those of the tokens t to t + 3 that are at least `first` and before `stop`."""
    if CHANNEL_FIRST:
        token = t + tl.arange(0, ROWS)
        mask = in_dim[:, None] & ((token >= first) & (token < stop))[None, :]
        pairs = tl.join(tl.join(rows[0], rows[2]), tl.join(rows[1], rows[3]))
        tile = tl.reshape(pairs, (in_dim.shape[0], ROWS)).to(ptr.dtype.element_ty)
        tl.store(ptr[:, None] + (token * stride)[None, :], tile, mask=mask)
    else:
        for r in tl.static_range(ROWS):
            row = rows[r].to(ptr.dtype.element_ty)
            tl.store(ptr + (t + r) * stride, row, mask=_at_token(in_dim, t + r, first, stop))


@triton.jit
def _input(
    x_ptr, initial_ptr, t, seqlen, x_token, initial_slot, in_dim,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Token t of each channel; tokens before 0 come from the initial states, or are 0."""
    x = _load_row(x_ptr, t, 0, seqlen, x_token, in_dim)
    if initial_ptr is not None:
        x += _load_row(initial_ptr, t + WIDTH - 1, 0, WIDTH - 1, initial_slot, in_dim)
    return x.to(ACC)


@triton.jit
def _seq_idx(seq_idx_ptr, t, seqlen, stride):
    """seq_idx of token t, before token 0 that of token 0, -1 past the end; 0 without seq_idx."""
    if seq_idx_ptr is not None:
        t = tl.maximum(t, 0).to(tl.int64)
        found = tl.load(seq_idx_ptr + t * stride, mask=t < seqlen, other=-1).to(tl.int64)
    else:
        found = t * 0
    return found


@triton.jit
def _history(
    x_ptr, initial_ptr, seq_idx_ptr, first, seqlen, x_token, initial_slot, seq_idx_token, in_dim,
    WIDTH: tl.constexpr, LAG: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The LAG tokens before `first`, and their seq_idx."""
    window, ids = (), ()
    for i in tl.static_range(LAG):
        t = first - LAG + i
        x = _input(x_ptr, initial_ptr, t, seqlen, x_token, initial_slot, in_dim, WIDTH, ACC)
        window += (x,)
        ids += (_seq_idx(seq_idx_ptr, t, seqlen, seq_idx_token),)
    return window, ids


@triton.jit
def _zeros(BLOCK_DIM: tl.constexpr, COUNT: tl.constexpr, ACC: tl.constexpr):
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors += (tl.zeros((BLOCK_DIM,), ACC),)
    return vectors


@triton.jit
def _tap(values, ids, i: tl.constexpr, j: tl.constexpr, HAS_SEQ_IDX: tl.constexpr):
    """values[i] for an output at j: 0 if i is of another sequence, or j is padding."""
    # not multiplied by 0: the other sequence may hold inf or nan
    value = values[i]
    if HAS_SEQ_IDX:
        value = tl.where((ids[i] == ids[j]) & (ids[j] >= 0), value, 0.0)
    return value


@triton.jit
def _in_final(value, own, newest, HAS_SEQ_IDX: tl.constexpr):
    """value, 0 if its seq_idx `own` is not `newest`, that of the last token, or is padding."""
    if HAS_SEQ_IDX:
        value = tl.where((own == newest) & (newest >= 0), value, 0.0)
    return value


@triton.jit
def _filter(
    weight_ptr, bias_ptr, channel, in_dim, weight_dim, weight_tap,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The taps, oldest first, and the bias."""
    taps = ()
    for k in tl.static_range(WIDTH):
        tap = tl.load(weight_ptr + channel * weight_dim + k * weight_tap, mask=in_dim, other=0.0)
        taps += (tap.to(ACC),)
    bias = tl.zeros(in_dim.shape, ACC)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=in_dim, other=0.0).to(ACC)
    return taps, bias


@triton.jit
def _sum_of_taps(window, ids, taps, bias, at: tl.constexpr, HAS_SEQ_IDX: tl.constexpr):
    """The filter at entry `at` of the window."""
    y = bias
    for k in tl.static_range(len(taps)):
        y += taps[k] * _tap(window, ids, at - len(taps) + 1 + k, at, HAS_SEQ_IDX)
    return y


# BLOCK_DIM: one to eight channels per thread
FORWARD_CONFIGS = [
    triton.Config({"BLOCK_DIM": 512}, num_warps=2),
    triton.Config({"BLOCK_DIM": 256}, num_warps=2),
    triton.Config({"BLOCK_DIM": 1024}, num_warps=4),
    triton.Config({"BLOCK_DIM": 128}, num_warps=4),
]


@tuned(FORWARD_CONFIGS, key=["dim", "WIDTH", "CHANNEL_FIRST"])
@triton.jit(do_not_specialize=["seqlen", "spans", "seq_idx_batch"])
def conv_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, seq_idx_ptr, initial_ptr, out_ptr, final_ptr,
    dim, seqlen, spans,
    x_batch: tl.int64, x_dim, x_token, weight_dim, weight_tap, seq_idx_batch, seq_idx_token,
    initial_batch, initial_dim, initial_slot, out_batch: tl.int64, out_dim, out_token,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, LAG: tl.constexpr, SILU: tl.constexpr,
    CHANNEL_FIRST: tl.constexpr, ACC: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_DIM channels of SPAN tokens; its neighbours own neighbouring channels
    HAS_SEQ_IDX: tl.constexpr = seq_idx_ptr is not None
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    channel = (tl.program_id(0) % dim_blocks).to(tl.int64) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    in_dim = channel < dim
    place = (tl.program_id(0) // dim_blocks).to(tl.int64)
    batch, first = place // spans, (place % spans) * SPAN
    last = tl.minimum(first + SPAN, seqlen)
    x_ptr += batch * x_batch + channel * x_dim
    out_ptr += batch * out_batch + channel * out_dim
    if HAS_SEQ_IDX:
        seq_idx_ptr += batch * seq_idx_batch
    if initial_ptr is not None:
        initial_ptr += batch * initial_batch + channel * initial_dim

    taps, bias = _filter(weight_ptr, bias_ptr, channel, in_dim, weight_dim, weight_tap, WIDTH, ACC)
    window, ids = _history(
        x_ptr, initial_ptr, seq_idx_ptr, first, seqlen, x_token, initial_slot, seq_idx_token,
        in_dim, WIDTH, LAG, ACC,
    )  # fmt: skip
    for step in range(0, last - first, ROWS):
        t = first + step
        window = window + _load_rows(x_ptr, t, last, x_token, in_dim, CHANNEL_FIRST, ACC)
        out = ()
        for r in tl.static_range(ROWS):
            ids += (_seq_idx(seq_idx_ptr, t + r, seqlen, seq_idx_token),)
            y = _sum_of_taps(window, ids, taps, bias, LAG + r, HAS_SEQ_IDX)
            if SILU:
                y = silu(y)
            if HAS_SEQ_IDX:
                y = tl.where(ids[LAG + r] < 0, 0.0, y)
            out += (y,)
        _store_rows(out_ptr, out, t, first, last, out_token, in_dim, CHANNEL_FIRST)
        window, ids = window[ROWS:], ids[ROWS:]
    if final_ptr is not None:
        # only programs of the last span store final states
        in_dim = _at_token(in_dim, last, seqlen, seqlen + 1)
        newest = _seq_idx(seq_idx_ptr, seqlen - 1, seqlen, seq_idx_token)
        for i in tl.static_range(WIDTH - 1):
            t = last - (WIDTH - 1) + i
            v = _input(x_ptr, initial_ptr, t, seqlen, x_token, initial_slot, in_dim, WIDTH, ACC)
            own = _seq_idx(seq_idx_ptr, t, seqlen, seq_idx_token)
            v = _in_final(v, own, newest, HAS_SEQ_IDX)
            at = (batch * (WIDTH - 1) + i) * dim + channel
            tl.store(final_ptr + at, v.to(final_ptr.dtype.element_ty), mask=in_dim)


def conv_forward(out, final, x, weight, bias, seq_idx, initial, silu):
    """Fills out and, unless it is None, `final`, whose channels are contiguous."""
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    seq_idx = seq_idx if seqlen else None
    spans = max(1, triton.cdiv(seqlen, SPAN))

    def grid(meta):
        return (triton.cdiv(dim, meta["BLOCK_DIM"]) * spans * batch,)

    conv_forward_kernel[grid](
        x, weight, None if bias is None else bias.contiguous(), seq_idx, initial, out, final,
        dim, seqlen, spans, *x.stride(), *weight.stride(), *strides(seq_idx, 2),
        *strides(initial, 3), *out.stride(),
        WIDTH=width, SPAN=SPAN, LAG=_lag(width), SILU=silu, CHANNEL_FIRST=_channel_first(x),
        ACC=accumulator(x.dtype),
    )  # fmt: skip


@triton.jit
def _d_sum_of_taps(
    dy, window, ids, taps, bias, at: tl.constexpr, SILU: tl.constexpr, HAS_SEQ_IDX: tl.constexpr
):  # fmt: skip
    """The gradient of the sum of taps at entry `at`, from the output's gradient."""
    if SILU:
        dy *= silu_slope(_sum_of_taps(window, ids, taps, bias, at, HAS_SEQ_IDX))
    if HAS_SEQ_IDX:
        dy = tl.where(ids[at] < 0, 0.0, dy)
    return dy


@triton.jit
def _add_dtaps(dtaps, dy, window, ids, at: tl.constexpr, HAS_SEQ_IDX: tl.constexpr):
    """dtaps plus what entry `at` adds to it."""
    sums = ()
    for k in tl.static_range(len(dtaps)):
        sums += (dtaps[k] + dy * _tap(window, ids, at - len(dtaps) + 1 + k, at, HAS_SEQ_IDX),)
    return sums


@triton.jit
def _dinput(dys, ids, taps, at: tl.constexpr, HAS_SEQ_IDX: tl.constexpr):
    """The gradient of the input at entry `at`, from the gradients of the outputs that read it."""
    total = tl.zeros_like(taps[0])
    for k in tl.static_range(len(taps)):
        total += taps[len(taps) - 1 - k] * _tap(dys, ids, at + k, at, HAS_SEQ_IDX)
    return total


@triton.jit
def _d_states(
    dx, t, own, newest, first, seqlen, dim, dfinal_ptr, dinitial_ptr, dfinal_slot, in_dim,
    WIDTH: tl.constexpr, HAS_SEQ_IDX: tl.constexpr,
):  # fmt: skip
    """dx of token t plus the final states' gradient; stores the initial states' gradient."""
    if dfinal_ptr is not None:
        slot = t - (seqlen - (WIDTH - 1))
        dfinal = _load_row(dfinal_ptr, slot, 0, WIDTH - 1, dfinal_slot, in_dim).to(dx.dtype)
        dx += _in_final(dfinal, own, newest, HAS_SEQ_IDX)
    if dinitial_ptr is not None:
        # only the first span reads the initial states
        mask = _at_token(in_dim, t, 1 - WIDTH, tl.where(first == 0, 0, -WIDTH))
        value = dx.to(dinitial_ptr.dtype.element_ty)
        tl.store(dinitial_ptr + (t + WIDTH - 1) * dim, value, mask=mask)
    return dx


# BLOCK_DIM: one to four channels per thread, which holds about twenty values for each
BACKWARD_CONFIGS = [
    triton.Config({"BLOCK_DIM": 256}, num_warps=4),
    triton.Config({"BLOCK_DIM": 512}, num_warps=4),
    triton.Config({"BLOCK_DIM": 128}, num_warps=2),
    triton.Config({"BLOCK_DIM": 128}, num_warps=4),
]


@tuned(BACKWARD_CONFIGS, key=["dim", "WIDTH", "CHANNEL_FIRST"])
@triton.jit(do_not_specialize=["seqlen", "spans", "span", "seq_idx_batch"])
def conv_backward_kernel(
    x_ptr, weight_ptr, bias_ptr, seq_idx_ptr, initial_ptr, dout_ptr, dfinal_ptr, dx_ptr,
    dinitial_ptr, dweight_ptr, dim, seqlen, spans, span, x_batch: tl.int64, x_dim, x_token,
    weight_dim, weight_tap, seq_idx_batch, seq_idx_token, initial_batch, initial_dim, initial_slot,
    dout_batch: tl.int64, dout_dim, dout_token, dfinal_batch, dfinal_dim, dfinal_slot,
    dx_batch: tl.int64, dx_dim, dx_token, WIDTH: tl.constexpr, LAG: tl.constexpr,
    SILU: tl.constexpr, CHANNEL_FIRST: tl.constexpr, ACC: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    # one program owns BLOCK_DIM channels of `span` tokens, and their partial dweight and dbias
    HAS_SEQ_IDX: tl.constexpr = seq_idx_ptr is not None
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    channel = (tl.program_id(0) % dim_blocks).to(tl.int64) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    in_dim = channel < dim
    place = (tl.program_id(0) // dim_blocks).to(tl.int64)
    batch, first = place // spans, (place % spans) * span
    last = tl.minimum(first + span, seqlen)
    x_ptr += batch * x_batch + channel * x_dim
    dout_ptr += batch * dout_batch + channel * dout_dim
    dx_ptr += batch * dx_batch + channel * dx_dim
    if HAS_SEQ_IDX:
        seq_idx_ptr += batch * seq_idx_batch
    if initial_ptr is not None:
        initial_ptr += batch * initial_batch + channel * initial_dim
        dinitial_ptr += batch * (WIDTH - 1) * dim + channel
    if dfinal_ptr is not None:
        dfinal_ptr += batch * dfinal_batch + channel * dfinal_dim

    taps, bias = _filter(weight_ptr, bias_ptr, channel, in_dim, weight_dim, weight_tap, WIDTH, ACC)
    window, ids = _history(
        x_ptr, initial_ptr, seq_idx_ptr, first, seqlen, x_token, initial_slot, seq_idx_token,
        in_dim, WIDTH, LAG, ACC,
    )  # fmt: skip
    dys, dtaps = _zeros(BLOCK_DIM, LAG, ACC), _zeros(BLOCK_DIM, WIDTH, ACC)
    dbias = tl.zeros((BLOCK_DIM,), ACC)
    newest = _seq_idx(seq_idx_ptr, seqlen - 1, seqlen, seq_idx_token)
    for step in range(0, last - first + LAG, ROWS):
        t = first + step
        window = window + _load_rows(x_ptr, t, seqlen, x_token, in_dim, CHANNEL_FIRST, ACC)
        dout = _load_rows(dout_ptr, t, seqlen, dout_token, in_dim, CHANNEL_FIRST, ACC)
        for r in tl.static_range(ROWS):
            ids += (_seq_idx(seq_idx_ptr, t + r, seqlen, seq_idx_token),)
            dy = _d_sum_of_taps(dout[r], window, ids, taps, bias, LAG + r, SILU, HAS_SEQ_IDX)
            dys += (dy,)
            # tokens past the span belong to the neighbour's sums
            dy = tl.where(t + r < last, dy, 0.0)
            dbias += dy
            dtaps = _add_dtaps(dtaps, dy, window, ids, LAG + r, HAS_SEQ_IDX)
        dx = ()
        for r in tl.static_range(ROWS):
            v = _d_states(
                _dinput(dys, ids, taps, r, HAS_SEQ_IDX), t - LAG + r, ids[r], newest, first,
                seqlen, dim, dfinal_ptr, dinitial_ptr, dfinal_slot, in_dim, WIDTH, HAS_SEQ_IDX,
            )  # fmt: skip
            dx += (v,)
        _store_rows(dx_ptr, dx, t - LAG, first, last, dx_token, in_dim, CHANNEL_FIRST)
        window, ids, dys = window[ROWS:], ids[ROWS:], dys[ROWS:]

    if bias_ptr is not None:
        dtaps += (dbias,)
    dweight_ptr += place * len(dtaps) * dim + channel
    for k in tl.static_range(len(dtaps)):
        tl.store(dweight_ptr + k * dim, dtaps[k], mask=in_dim)


def conv_backward(dx, dinitial, dout, dfinal, x, weight, bias, seq_idx, initial, silu):
    """Fills dx and, unless it is None, dinitial, whose channels are contiguous. Returns dweight
    and, with a bias, dbias as one tensor (width or width + 1, dim), at least float32."""
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    seq_idx = seq_idx if seqlen else None
    parts = max(1, LANES // max(1, dim))
    span = max(SPAN, ROWS.value * triton.cdiv(batch * seqlen, ROWS.value * parts))
    spans = max(1, triton.cdiv(seqlen, span))
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = torch.empty(batch * spans, width + (bias is not None), dim, dtype=wide, device=x.device)

    def grid(meta):
        return (triton.cdiv(dim, meta["BLOCK_DIM"]) * spans * batch,)

    conv_backward_kernel[grid](
        x, weight, None if bias is None else bias.contiguous(), seq_idx, initial, dout, dfinal, dx,
        dinitial, sums, dim, seqlen, spans, span, *x.stride(), *weight.stride(),
        *strides(seq_idx, 2), *strides(initial, 3), *dout.stride(), *strides(dfinal, 3),
        *dx.stride(), WIDTH=width, LAG=_lag(width), SILU=silu,
        CHANNEL_FIRST=_channel_first(x), ACC=accumulator(x.dtype),
    )  # fmt: skip
    return sums.sum(0)


def _lag(width):
    """width - 1 rounded up to whole iterations."""
    return ROWS.value * triton.cdiv(width - 1, ROWS.value)


def _channel_first(x):
    """Whether the tokens of a channel are contiguous, and the channels of a token are not."""
    return x.stride(2) == 1 and x.stride(1) != 1
