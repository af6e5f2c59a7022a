"""The calls of TimeViper's 9B language model and of its vision side, and the least each must cost.

A function that returns a `Call` takes the functions of a provider, a size (tokens, sequences of a
decode step, or frames) and a 16 bit dtype, where there is a batch beside the size also `batch=`.
Preparing the tensors is set-up; the call is timed or counted. FLOORS has, by the name of its row,
what the call has to move and to compute at a size.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

HIDDEN, MLP = 4480, 15680
NHEADS, HEADDIM, NGROUPS, D_STATE, WIDTH = 128, 80, 8, 128, 4
D_INNER = NHEADS * HEADDIM  # 10240
CONV_CHANNELS = D_INNER + 2 * NGROUPS * D_STATE  # 12288
IN_PROJ = D_INNER + CONV_CHANNELS + NHEADS  # 22656: gate, then x B C, then dt
EPS = 1e-5
REPLAYED = 8  # tokens per write of the state in the replayed decode step
CHUNK = 256  # TimeViper passes it to mamba-ssm, which is faster with it than with 128

HEADS, KV_HEADS, HEAD_DIM = 40, 8, 128  # of attention
PATCHES, VISION_WIDTH, TOKENS_PER_FRAME = 729, 1152, 16
TEXT = 64  # tokens of a question
ANSWERS, SAID = 8, 64  # answers at once, and the tokens of each behind the video
KEEP = 5  # TransV keeps one of so many tokens

# speeds that a well written kernel reaches on one H200; the L2 is the data sheet's
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 790e12
L2_BYTES = 50e6


class Call(NamedTuple):
    """The call, and the tensors to differentiate it by."""

    run: Callable[[], Any]
    by: tuple[Tensor, ...] = ()


Prepare = Callable[..., Call]


class Floor(NamedTuple):
    """The least bytes from and to memory, and the useful FLOPs of matrix products."""

    bytes: float
    flops: float = 0.0

    def seconds(
        self, bytes_per_second: float = BYTES_PER_SECOND, flops_per_second: float = FLOPS_PER_SECOND
    ) -> float:
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)


def gated_norm(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    """y from the scan, and the gate as a slice of in_proj's output."""
    y = torch.randn(batch, tokens, D_INNER, dtype=dtype).requires_grad_()
    gate = torch.randn(batch, tokens, IN_PROJ, dtype=dtype)[..., :D_INNER].requires_grad_()
    weight = torch.ones(D_INNER, dtype=dtype).requires_grad_()
    options = (EPS, D_INNER // NGROUPS, False)
    return Call(lambda: ops.rmsnorm_fn(y, weight, None, gate, *options), (y, weight, gate))


def residual_norm(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    shape = (batch, tokens, HIDDEN)
    x, residual = (torch.randn(shape, dtype=dtype).requires_grad_() for _ in "xr")
    weight = torch.ones(HIDDEN, dtype=dtype).requires_grad_()
    return Call(lambda: ops.rms_norm(x, weight, EPS, residual), (x, weight, residual))


def activation(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    x = torch.randn(batch, tokens, MLP, dtype=dtype).requires_grad_()
    return Call(lambda: ops.relu2(x), (x,))


def conv(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    """x, B and C as the slice of in_proj's output that they are; a stride of 22656 per token."""
    packed = torch.randn(batch, tokens, IN_PROJ, dtype=dtype)
    x = packed[..., D_INNER : D_INNER + CONV_CHANNELS].mT.requires_grad_()
    weight = torch.randn(CONV_CHANNELS, WIDTH, dtype=dtype).requires_grad_()
    bias = torch.randn(CONV_CHANNELS, dtype=dtype).requires_grad_()
    by = (x, weight, bias)
    return Call(lambda: ops.causal_conv1d_fn(x, weight, bias, activation="silu"), by)


def conv_update(ops: SimpleNamespace, batch: int, dtype: torch.dtype) -> Call:
    """One decode step; the state is the cache's, which keeps as many columns as there are taps."""
    x = torch.randn(batch, IN_PROJ, dtype=dtype)[:, D_INNER : D_INNER + CONV_CHANNELS]
    weight = torch.randn(CONV_CHANNELS, WIDTH, dtype=dtype)
    bias = torch.randn(CONV_CHANNELS, dtype=dtype)
    state = torch.randn(batch, CONV_CHANNELS, WIDTH, dtype=dtype)
    return Call(lambda: ops.causal_conv1d_update(x, state, weight, bias, "silu"))


def state_update(state_dtype: torch.dtype, part: int) -> Prepare:
    """One decode step with the strides of the model: A, dt, dt_bias and D expanded over a head."""

    def prepare(ops: SimpleNamespace, batch: int, dtype: torch.dtype) -> Call:
        nheads, ngroups = NHEADS // part, NGROUPS // part
        packed = torch.randn(batch, IN_PROJ, dtype=dtype)
        x, B, C, dt = packed[:, D_INNER:].split(
            [D_INNER, NGROUPS * D_STATE, NGROUPS * D_STATE, NHEADS], dim=-1
        )
        x = x.unflatten(-1, (NHEADS, HEADDIM))[:, :nheads]
        B, C = (t.unflatten(-1, (NGROUPS, D_STATE))[:, :ngroups] for t in (B, C))
        dt = dt[:, :nheads, None].expand(-1, -1, HEADDIM)
        A = torch.full((nheads,), -1.0)[:, None, None].expand(-1, HEADDIM, D_STATE)
        D, dt_bias = torch.ones(2, nheads)[..., None].expand(-1, -1, HEADDIM).unbind()
        state = torch.randn(batch, nheads, HEADDIM, D_STATE).to(state_dtype)
        options = {"D": D, "dt_bias": dt_bias, "dt_softplus": True}
        return Call(lambda: ops.selective_state_update(state, x, dt, A, B, C, **options))

    return prepare


def replayed(part: int) -> Prepare:
    """A decode step of sequences that have 1, 2, ... REPLAYED tokens pending, one after another."""

    def prepare(ops: SimpleNamespace, batch: int, dtype: torch.dtype) -> Call:
        nheads, ngroups, slots = NHEADS // part, NGROUPS // part, 2 * REPLAYED
        x = torch.randn(batch, nheads, HEADDIM, dtype=dtype)
        B, C = torch.randn(2, batch, ngroups, D_STATE, dtype=dtype).unbind()
        dt, A = torch.randn(batch, nheads, dtype=dtype), torch.full((nheads,), -1.0)
        D, dt_bias = torch.ones(2, nheads)
        state = torch.randn(batch, nheads, HEADDIM, D_STATE)
        held_x = torch.randn(batch, slots, nheads, HEADDIM, dtype=dtype)
        held_dt = torch.full((batch, slots, nheads, 2), 0.5)
        held_B = torch.randn(batch, slots, ngroups, D_STATE, dtype=dtype)
        written = torch.zeros(batch, nheads, dtype=torch.int32)
        seqlens = 1 + torch.arange(batch, dtype=torch.int32) % REPLAYED
        held = (state, held_x, held_dt, held_B, written, seqlens)
        options = {"D": D, "dt_bias": dt_bias, "dt_softplus": True}

        def run() -> Tensor:
            out: Tensor = ops.replay_state_update(*held, x, dt, A, B, C, **options)
            seqlens.add_(1)
            return out

        return Call(run)

    return prepare


def mixer_step(ops: SimpleNamespace, batch: int, dtype: torch.dtype) -> Call:
    """The model's whole decode step: convolution, scan and gate, in place on the cache's states."""
    row = torch.randn(batch, IN_PROJ, dtype=dtype)
    ring = torch.randn(batch, WIDTH, CONV_CHANNELS, dtype=dtype).mT
    state = torch.randn(batch, NHEADS, HEADDIM, D_STATE)
    position = torch.full((batch,), 5, dtype=torch.int32)
    weight = torch.randn(CONV_CHANNELS, WIDTH, dtype=dtype)
    bias = torch.randn(CONV_CHANNELS, dtype=dtype)
    dt_bias, A_log, D = torch.zeros(3, NHEADS, dtype=dtype)
    parameters = (weight, bias, dt_bias, A_log, D)
    return Call(lambda: ops.mamba2_decode_step(row, ring, state, position, *parameters))


def scan_of(part: int = 1, endless: bool = False) -> Prepare:
    """The scan of 1/part of the heads, with steps and decays as Mamba-2 draws them.

    endless: decays so weak that every token counts to the end.
    """

    def prepare(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
        """x, B, C as the convolution leaves them, dt as the last columns of in_proj's output."""
        nheads, ngroups = NHEADS // part, NGROUPS // part
        mixed = torch.randn(batch, tokens, CONV_CHANNELS, dtype=dtype)
        x, B, C = mixed.split([D_INNER, NGROUPS * D_STATE, NGROUPS * D_STATE], dim=-1)
        x = x.unflatten(-1, (NHEADS, HEADDIM))[:, :, :nheads].requires_grad_()
        B, C = (
            t.unflatten(-1, (NGROUPS, D_STATE))[:, :, :ngroups].requires_grad_() for t in (B, C)
        )
        packed = torch.empty(batch, tokens, IN_PROJ, dtype=dtype)
        dt = packed[..., -NHEADS:].normal_(std=0.1)[..., :nheads].requires_grad_()
        # a step log-uniform in [1e-3, 0.1], A uniform in [-16, -1]: spread evenly over the heads,
        # without correlation, so that a few heads represent all
        head = torch.arange(nheads, dtype=torch.float32)
        step = 10 ** (-3 + 2 * (head + 0.5) / nheads)
        dt_bias = torch.log(torch.expm1(step)).requires_grad_()
        A = -(1 + 15 * (head * 0.618034 % 1)) * (1e-9 if endless else 1)
        A = A.requires_grad_()
        D = torch.ones(nheads).requires_grad_()
        options = {"D": D, "dt_bias": dt_bias, "dt_softplus": True, "return_final_states": True}
        return Call(
            lambda: ops.mamba_chunk_scan_combined(x, dt, A, B, C, CHUNK, **options),
            (x, dt, A, B, C, D, dt_bias),
        )

    return prepare


def merge(ops: SimpleNamespace, frames: int, dtype: torch.dtype) -> Call:
    """The patches of each frame to the 16 tokens that the language model sees."""
    x = torch.randn(frames, PATCHES, VISION_WIDTH, dtype=dtype).requires_grad_()
    return Call(lambda: ops.tome_merge(x, TOKENS_PER_FRAME), (x,))


def select(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    """One query row against all keys."""
    q = torch.randn(batch, HEADS, HEAD_DIM, dtype=dtype)
    k = torch.randn(batch, tokens, KV_HEADS, HEAD_DIM, dtype=dtype)
    return Call(lambda: ops.attention_topk(q, k, tokens // KEEP, (0, tokens)))


def select_hidden(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    """The same from hidden states, without keys."""
    q = torch.randn(batch, HEADS, HEAD_DIM, dtype=dtype)
    hidden = torch.randn(batch, tokens, HIDDEN, dtype=dtype)
    weight = torch.randn(KV_HEADS * HEAD_DIM, HIDDEN, dtype=dtype) * HIDDEN**-0.5
    return Call(lambda: ops.attention_topk_hidden(q, hidden, weight, tokens // KEEP, (0, tokens)))


def leave(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
    """Take the rows out that the selection drops, and return them for the transfer."""
    x = torch.randn(batch, tokens, HIDDEN, dtype=dtype).requires_grad_()
    # one of KEEP stays: 2, 7, 12, ...
    gone = torch.arange(tokens - (tokens + 2) // KEEP)
    gone = (gone + (gone + 2) // (KEEP - 1)).repeat(batch, 1)
    return Call(lambda: ops.compact(x, gone, return_dropped=True)[:2], (x,))


def transfer_of(part: int = 1) -> Prepare:
    """The transfer by 1/part of the heads; all of them write to the whole of the text."""

    def prepare(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
        """The question's tokens read the dropped ones; their keys and values are given.

        Fewer tokens than a question has are a small run on a CPU, with one query head per key head.
        """
        kv_heads = KV_HEADS // part
        length, heads = (TEXT, HEADS // part) if tokens > TEXT else (tokens, kv_heads)
        text = torch.randn(batch, length, HIDDEN, dtype=dtype).requires_grad_()
        q = torch.randn(batch, length, heads, HEAD_DIM, dtype=dtype).requires_grad_()
        k, v = torch.randn(2, batch, tokens, kv_heads, HEAD_DIM, dtype=dtype).unbind()
        k, v = k.requires_grad_(), v.requires_grad_()
        alpha = torch.full((1,), 0.5, dtype=dtype).requires_grad_()
        width = heads * HEAD_DIM
        weight = (torch.randn(HIDDEN, width, dtype=dtype) * width**-0.5).requires_grad_()
        by = (text, q, k, v, alpha, weight)
        return Call(lambda: ops.gated_cross_attention(text, q, k, v, alpha, out_proj=weight), by)

    return prepare


transfer = transfer_of()


def attend_of(rows: int, n: int) -> Prepare:
    """The last n tokens of each row over one video's keys and the row's own."""

    def prepare(ops: SimpleNamespace, tokens: int, dtype: torch.dtype) -> Call:
        q = torch.randn(rows, n, HEADS, HEAD_DIM, dtype=dtype)
        key, value = torch.randn(2, rows, SAID, KV_HEADS, HEAD_DIM, dtype=dtype).unbind()
        prefix = torch.randn(2, 1, tokens, KV_HEADS, HEAD_DIM, dtype=dtype).unbind()
        lengths = torch.full((rows,), SAID, dtype=torch.int32)
        return Call(lambda: ops.prefix_attention(q, key, value, lengths, prefix))

    return prepare


# a question, and a decode step of several answers
attend, attend_step = attend_of(1, TEXT), attend_of(ANSWERS, 1)


def _line(
    each: float, flops: float = 0.0, once: float = 0.0, flops_once: float = 0.0
) -> Callable[[int], Floor]:
    """Bytes and FLOPs of each token, sequence or frame, and those of weights, which come once."""
    return lambda size: Floor(each * size + once, flops * size + flops_once)


def _rows(width: int, tensors: int, weights: int = 0) -> Callable[[int], Floor]:
    return _line(2 * width * tensors, once=2 * weights)


# tensors have 2 bytes an element unless said otherwise
B_AND_C = 2 * NGROUPS * D_STATE
TAPS = CONV_CHANNELS * (WIDTH + 1)  # with the bias
KEYS = KV_HEADS * HEAD_DIM
OUT_PROJ = HIDDEN * HEADS * HEAD_DIM
STATE = D_INNER * D_STATE
# products of the scan at chunks of 128: C B per group, then three per head
SCAN = 2 * 128 * D_STATE * NGROUPS + 2 * D_INNER * (128 + 2 * D_STATE)
# a token brings x, B, C, dt in and y out; each head has A, D and dt_bias in float32
STEP, HEAD_PARAMETERS = 2 * (2 * D_INNER + B_AND_C + NHEADS), 3 * 4 * NHEADS
# a pending token's x, B, step and decay (4 bytes each)
HELD = 2 * (D_INNER + NGROUPS * D_STATE) + 8 * NHEADS
# the ring's columns that the taps read, and the written one; the row and its place in, y out
MIXER_STEP = 2 * CONV_CHANNELS * WIDTH + 2 * (IN_PROJ + D_INNER) + 4
# every patch once (a kernel that matches first and sums later reads it twice), tokens, sizes, slots
MERGE = (2 * VISION_WIDTH + 4) * (PATCHES + TOKENS_PER_FRAME)
# every row in and out, forward or backward; the indices of dropped rows (8 bytes) in
COMPACT = 4 * HIDDEN + 8 * (1 - 1 / KEEP)
# the question's tokens with every key, or with every value
PRODUCT = 2.0 * TEXT * HEADS * HEAD_DIM
# the query of a token in, and what it reads out
ATTENDED = 4 * HEADS * HEAD_DIM

FLOORS: dict[str, Callable[[int], Floor]] = {
    "gated norm": _rows(D_INNER, 3, D_INNER),
    "gated norm, backward": _rows(D_INNER, 5, 2 * D_INNER),
    "residual norm": _rows(HIDDEN, 4, HIDDEN),
    "residual norm, backward": _rows(HIDDEN, 4, 2 * HIDDEN),
    "activation of the MLP": _rows(MLP, 2),
    "activation of the MLP, backward": _rows(MLP, 3),
    "convolution": _rows(CONV_CHANNELS, 2, TAPS),
    "convolution, backward": _rows(CONV_CHANNELS, 3, 2 * TAPS),
    # backward also dy in and four gradients out, and 19.1 MFLOP of products
    "scan": _line(STEP, SCAN),
    "scan, backward": _line(2 * (3 * D_INNER + 2 * B_AND_C + 2 * NHEADS), 19.1e6),
    # x and the state in, y and the state out
    "decode step of the convolution": _rows(CONV_CHANNELS, 2 + 2 * WIDTH, TAPS),
    "decode step of the scan, 32 bit state": _line(8 * STATE + STEP, once=HEAD_PARAMETERS),
    "decode step of the scan, 16 bit state": _line(4 * STATE + STEP, once=HEAD_PARAMETERS),
    # the state in, and out once in REPLAYED; the mean of the pending tokens in, the new one out
    "decode step of the scan, replayed": _line(
        4 * STATE * (1 + 1 / REPLAYED) + STEP + HELD * ((REPLAYED + 1) / 2 + 1),
        once=HEAD_PARAMETERS,
    ),
    "decode step of the mixer": _line(8 * STATE + MIXER_STEP, once=2 * (TAPS + 3 * NHEADS)),
    # similarities of six rounds on 72 channels
    "token merging": _line(MERGE, 25.5e6),
    "token merging, backward": _line(MERGE),
    # keys, values and the output's projection in, backward their gradients out; two products,
    # backward five
    "transfer into the text": _line(4 * KEYS, 2 * PRODUCT, 2 * OUT_PROJ, 2.0 * TEXT * OUT_PROJ),
    "transfer into the text, backward": _line(
        8 * KEYS, 5 * PRODUCT, 4 * OUT_PROJ, 4.0 * TEXT * OUT_PROJ
    ),
    # keys, or hidden states with the projection folded into the query; a score (4 bytes) and an
    # index (8 bytes) of each token out
    "selection": _line(2 * KEYS + 12, 2.0 * HEADS * HEAD_DIM),
    "selection from hidden states": _line(2 * HIDDEN + 12, 2.0 * HEADS * HIDDEN),
    # keys and values of the video once for all rows, of each tail once; q in, what was read out
    "text over a video": _line(4 * KEYS, 2 * PRODUCT, ATTENDED * TEXT + 4 * KEYS * SAID),
    "answers over a video": _line(
        4 * KEYS, 2 * ANSWERS * PRODUCT / TEXT, ANSWERS * (ATTENDED + 4 * KEYS * SAID)
    ),
    "rows taken out": _line(COMPACT),
    "rows taken out, backward": _line(COMPACT),
}
