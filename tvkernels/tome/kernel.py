"""Triton kernels of token merging: the matching (match_kernel.py), then the mean of each slot.

Shapes: x (batch, seqlen, dim) by any strides; `members` (batch, seqlen) holds each group's tokens
sorted by slot, where those of slot s begin at starts[s]; tokens out (batch, num_tokens, dim). Two
passes over x: one for the metric, one for the means. The backward is a gather.
"""

import functools

import torch
import triton
import triton.language as tl

from tvkernels.core.tl import accumulator
from tvkernels.core.tune import tuned
from tvkernels.tome.device import FLOATS, INTS, WEIGHTS
from tvkernels.tome.match_kernel import ASCENDING, DESCENDING, RAW, match_kernel
from tvkernels.tome.round_kernel import long_rounds

ORDERS = {"raw": RAW.value, "ascending": ASCENDING.value, "descending": DESCENDING.value}
# programs of the matching where there is no GPU to ask
PROGRAMS = 264
# slots of a program of the means: the smallest side of a dot, so that few of its lanes are idle
SLOTS = 16
# all programs work together on a group of more tokens than this, if the groups are few
LONG = 1024


def match(x, num_tokens, num_heads, order):
    """slots (batch, seqlen), sizes, starts (batch, num_tokens), members (batch, seqlen): int32."""
    batch, seqlen, dim = x.shape
    new = functools.partial(torch.empty, device=x.device)
    ints = functools.partial(new, dtype=torch.int32)
    slots, members = ints(batch, seqlen), ints(batch, seqlen)
    sizes, starts = ints(batch, num_tokens), ints(batch, num_tokens)
    programs = min(batch, _programs(x.device))
    shape = _shape(dim // num_heads) | {"NUM_HEADS": num_heads, "ACC": accumulator(x.dtype)}
    scratch_rows = seqlen + max(num_tokens, seqlen - seqlen // 2)
    scratch = (
        new(programs, scratch_rows, 2, shape["WIDTH"], dtype=torch.float16),
        ints(programs, INTS.value, seqlen),
        new(programs, FLOATS.value, seqlen, dtype=torch.float32),
        new(programs, WEIGHTS.value, seqlen, dtype=torch.float64),
    )
    long = seqlen > LONG and 2 * batch < _programs(x.device)
    count, old = seqlen, 0
    if long:
        count, old = long_rounds(x, slots, scratch, num_tokens, LONG, scratch_rows, shape)
    match_kernel[(programs,)](
        x, slots, sizes, starts, members, *scratch,
        batch, seqlen, num_tokens, count, old, scratch_rows, *x.stride(),
        FRESH=not long, ORDER=ORDERS[order], **shape,
    )  # fmt: skip
    return slots, sizes, starts, members


def _shape(d):
    """The kernels' constexpr arguments that follow from a metric of `d` entries."""
    main = d // 64 * 64
    tail = 0 if d == main else max(16, triton.next_power_of_2(d - main))
    lanes = triton.next_power_of_2(main + tail)
    # rows of one tile: 128 registers hold them in float64 beside the tiles of cosines
    rows = max(1, min(64, (2048 if main and tail > 16 else 4096) // lanes))
    return {"D": d, "MAIN": main, "TAIL": tail, "WIDTH": main + tail, "LANES": lanes, "ROWS": rows}


def _programs(device):
    """Two per multiprocessor. Results do not depend on it: groups are independent."""
    if device.type != "cuda":
        return PROGRAMS
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _add_rows(total, x, pick, ACC: tl.constexpr):
    """total (CHANNELS, SLOTS) plus the rows of x (TOKENS, CHANNELS), each to the slot it picks."""
    if x.dtype == tl.float32:
        # three bfloat16 sum to a float32 above 2^-110 exactly; `pick` multiplies them by 0 or 1
        rest = x
        for _ in tl.static_range(3):
            # truncate instead of rounding: the largest floats would round to inf
            bits = rest.to(tl.uint32, bitcast=True) & 0xFFFF0000
            piece = bits.to(tl.float32, bitcast=True)
            total = tl.dot(tl.trans(piece.to(tl.bfloat16)), pick.to(tl.bfloat16), total)
            rest -= piece
    else:
        total = tl.dot(tl.trans(x), pick.to(x.dtype), total, out_dtype=ACC)
    return total


MEAN_CONFIGS = [
    triton.Config({"CHANNELS": 128, "TOKENS": 64}, num_warps=4, num_stages=4),
    triton.Config({"CHANNELS": 128, "TOKENS": 64}, num_warps=4, num_stages=3),
    triton.Config({"CHANNELS": 64, "TOKENS": 64}, num_warps=4, num_stages=4),
]


@tuned(MEAN_CONFIGS, key=["dim"])
@triton.jit(do_not_specialize=["seqlen", "num_tokens"])
def mean_kernel(
    x_ptr, slots_ptr, sizes_ptr, starts_ptr, members_ptr, out_ptr,
    seqlen, num_tokens, dim, x_batch: tl.int64, x_token: tl.int64, x_channel,
    SLOTS: tl.constexpr, SORTED: tl.constexpr, ACC: tl.constexpr,
    CHANNELS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    # one program owns SLOTS slots of a group in CHANNELS channels, and reads their tokens once.
    # SORTED: it finds them in `members`. Otherwise it owns all slots, and reads all tokens in order
    strips = tl.cdiv(dim, CHANNELS)
    blocks = tl.cdiv(num_tokens, SLOTS)
    column = (tl.program_id(0) % strips) * CHANNELS + tl.arange(0, CHANNELS)
    first = (tl.program_id(0) // strips % blocks) * SLOTS
    group = (tl.program_id(0) // strips // blocks).to(tl.int64)
    slot = first + tl.arange(0, SLOTS)
    in_slots, in_dim = slot < num_tokens, column < dim
    size = tl.load(sizes_ptr + group * num_tokens + slot, mask=in_slots, other=1)
    begin, end = seqlen * 0, seqlen
    if SORTED:
        begin = tl.load(starts_ptr + group * num_tokens + first)
        end = begin + tl.sum(tl.where(in_slots, size, 0), 0)
    columns = x_ptr + group * x_batch + column.to(tl.int64)[None, :] * x_channel
    total = tl.zeros((CHANNELS, SLOTS), ACC)
    for start in range(begin, end, TOKENS):
        place = start + tl.arange(0, TOKENS)
        live = place < end
        token = place
        if SORTED:
            token = tl.load(members_ptr + group * seqlen + place, mask=live, other=0)
        mine = tl.load(slots_ptr + group * seqlen + token, mask=live, other=-1)
        x = tl.load(
            columns + token.to(tl.int64)[:, None] * x_token,
            mask=live[:, None] & in_dim[None, :],
            other=0.0,
        )
        total = _add_rows(total, x, mine[:, None] == slot[None, :], ACC)
    # over both axes at once: Triton 3.6 compiles no reduction after another here for sm_100
    if tl.min((tl.abs(total) < float("inf")).to(tl.int32)) == 0:
        # a product with 0 carries NaN and infinity to every slot: add the tokens one by one
        total = tl.zeros((CHANNELS, SLOTS), ACC)
        for start in range(begin, end):
            token = tl.cast(start, tl.int64)
            if SORTED:
                token = tl.load(members_ptr + group * seqlen + start).to(tl.int64)
            mine = tl.load(slots_ptr + group * seqlen + token)
            x = tl.load(columns + token * x_token, mask=in_dim[None, :], other=0.0)
            total = tl.where(mine == slot[None, :], total + tl.trans(x).to(ACC), total)
    mean = total / size[None, :].to(ACC)
    at = (group * num_tokens + slot)[None, :] * dim + column[:, None]
    mask = in_dim[:, None] & in_slots[None, :]
    tl.store(out_ptr + at, mean.to(out_ptr.dtype.element_ty), mask=mask)


def merge_forward(x, num_tokens, num_heads, order):
    """tokens (batch, num_tokens, dim), sizes (batch, num_tokens), slots (batch, seqlen)."""
    slots, sizes, starts, members = match(x, num_tokens, num_heads, order)
    batch, seqlen, dim = x.shape
    tokens = torch.empty(batch, num_tokens, dim, dtype=x.dtype, device=x.device)

    def grid(meta):
        blocks = triton.cdiv(num_tokens, SLOTS) * triton.cdiv(dim, meta["CHANNELS"])
        return (batch * blocks,)

    mean_kernel[grid](
        x, slots, sizes, starts, members, tokens, seqlen, num_tokens, dim, *x.stride(),
        SLOTS=SLOTS, SORTED=num_tokens > SLOTS, ACC=accumulator(x.dtype),
    )  # fmt: skip
    return tokens, sizes, slots


SPREAD_CONFIGS = [
    triton.Config({"CHANNELS": channels, "TOKENS": tokens}, num_warps=4)
    for channels, tokens in ((256, 8), (256, 16), (512, 8))
]


@tuned(SPREAD_CONFIGS, key=["dim"])
@triton.jit(do_not_specialize=["seqlen", "num_tokens"])
def spread_kernel(
    dout_ptr, slots_ptr, sizes_ptr, dx_ptr,
    seqlen, num_tokens, dim, dout_batch: tl.int64, dout_token: tl.int64, dout_channel,
    ACC: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    # one program owns the gradient of TOKENS tokens of a group in CHANNELS channels
    strips = tl.cdiv(dim, CHANNELS)
    blocks = tl.cdiv(seqlen, TOKENS)
    column = (tl.program_id(0) % strips) * CHANNELS + tl.arange(0, CHANNELS)
    token = (tl.program_id(0) // strips % blocks) * TOKENS + tl.arange(0, TOKENS)
    group = (tl.program_id(0) // strips // blocks).to(tl.int64)
    live, in_dim = token < seqlen, column < dim
    slot = tl.load(slots_ptr + group * seqlen + token, mask=live, other=0)
    size = tl.load(sizes_ptr + group * num_tokens + slot, mask=live, other=1)
    at = group * dout_batch + slot.to(tl.int64)[:, None] * dout_token
    at += column.to(tl.int64)[None, :] * dout_channel
    mask = live[:, None] & in_dim[None, :]
    dmean = tl.load(dout_ptr + at, mask=mask, other=0.0).to(ACC)
    dx = dmean / size[:, None].to(ACC)
    at = (group * seqlen + token)[:, None] * dim + column[None, :]
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def merge_backward(dtokens, slots, sizes):
    """dx (batch, seqlen, dim), contiguous."""
    (batch, num_tokens, dim), seqlen = dtokens.shape, slots.shape[1]
    dx = torch.empty(batch, seqlen, dim, dtype=dtokens.dtype, device=dtokens.device)

    def grid(meta):
        blocks = triton.cdiv(seqlen, meta["TOKENS"]) * triton.cdiv(dim, meta["CHANNELS"])
        return (batch * blocks,)

    spread_kernel[grid](
        dtokens, slots, sizes, dx, seqlen, num_tokens, dim, *dtokens.stride(),
        ACC=accumulator(dtokens.dtype),
    )  # fmt: skip
    return dx
