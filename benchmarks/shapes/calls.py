"""The calls of TimeViper's 9B language model and of its vision side, each prepared at a given size.

A function here takes the functions of a provider, a size (tokens, sequences of a decode step, or
frames) and a 16 bit dtype, where there is a batch beside the size also `batch=`, and returns the
call to time or to count. Preparing the tensors is set-up.
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
CHUNK = 256  # what TimeViper passes to mamba-ssm, which is faster with it than with 128

HEADS, KV_HEADS, HEAD_DIM = 40, 8, 128  # of attention
PATCHES, VISION_WIDTH, TOKENS_PER_FRAME = 729, 1152, 16
TEXT = 64  # tokens of a question
KEEP = 5  # TransV keeps one of so many tokens


class Call(NamedTuple):
    """The call, and the tensors to differentiate it by."""

    run: Callable[[], Any]
    by: tuple[Tensor, ...] = ()


Prepare = Callable[..., Call]


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
