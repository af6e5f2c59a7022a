"""Shapes and floors of what TransV and the projector do, as shapes.py has the rest.

An op that has a Triton kernel has a line in CASES, which are counted behind those of shapes.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from benchmarks.shapes import HIDDEN, Call, Case, Floor, Prepare, backward

HEADS, KV_HEADS, HEAD_DIM = 40, 8, 128  # of attention
PATCHES, VISION_WIDTH, TOKENS_PER_FRAME = 729, 1152, 16
TEXT = 64  # tokens of a question
KEEP = 5  # TransV keeps one of so many tokens


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
    """What the selection drops goes, and is handed to the transfer."""
    x = torch.randn(batch, tokens, HIDDEN, dtype=dtype).requires_grad_()
    # one of KEEP stays: 2, 7, 12, ...
    gone = torch.arange(tokens - (tokens + 2) // KEEP)
    gone = (gone + (gone + 2) // (KEEP - 1)).repeat(batch, 1)
    return Call(lambda: ops.compact(x, gone, return_dropped=True)[:2], (x,))


def transfer_of(part: int = 1) -> Prepare:
    """The transfer by 1/part of the heads; all of them write to the whole of the text."""

    def prepare(ops: SimpleNamespace, tokens: int, dtype: torch.dtype, batch: int = 1) -> Call:
        """The question's tokens read the dropped ones; their keys and values are given.

        Fewer tokens than a question has are a try on a CPU: there with one query head per key head.
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


# the floors: tensors of 2 bytes an element unless said


def merge_floor(frames: int) -> Floor:
    """Every patch once (who matches first and sums later reads twice), the tokens, sizes, slots;
    similarities of six rounds on 72 channels."""
    elements = (PATCHES + TOKENS_PER_FRAME) * VISION_WIDTH
    return Floor((2 * elements + 4 * (PATCHES + TOKENS_PER_FRAME)) * frames, 25.5e6 * frames)


def merge_backward_floor(frames: int) -> Floor:
    """The same tensors, the other way."""
    return Floor(merge_floor(frames).bytes)


def select_floor(tokens: int) -> Floor:
    """Keys in; a score (4 bytes) and an index (8 bytes) of each token out."""
    return Floor((2 * KV_HEADS * HEAD_DIM + 12) * tokens, 2.0 * HEADS * HEAD_DIM * tokens)


def select_hidden_floor(tokens: int) -> Floor:
    """Hidden states in, with the projection folded into the query."""
    return Floor((2 * HIDDEN + 12) * tokens, 2.0 * HEADS * HIDDEN * tokens)


def leave_floor(tokens: int) -> Floor:
    """Every row in and out, forward or back; the indices of those that go (8 bytes) in."""
    return Floor((4 * HIDDEN + 8 * (1 - 1 / KEEP)) * tokens)


def transfer_floor(tokens: int) -> Floor:
    """Keys, values and the output's projection in; two products."""
    weight = HIDDEN * HEADS * HEAD_DIM
    flops = 4.0 * TEXT * HEADS * HEAD_DIM * tokens + 2.0 * TEXT * weight
    return Floor(2 * (2 * KV_HEADS * HEAD_DIM * tokens + weight), flops)


def transfer_backward_floor(tokens: int) -> Floor:
    """Keys and values in, their gradients out; five products where the forward has two."""
    weight = HIDDEN * HEADS * HEAD_DIM
    flops = 10.0 * TEXT * HEADS * HEAD_DIM * tokens + 4.0 * TEXT * weight
    return Floor(2 * (4 * KV_HEADS * HEAD_DIM * tokens + 2 * weight), flops)


CASES: tuple[Case, ...] = (
    Case(
        "token merging",
        "tome_merge",
        merge,
        merge_floor,
        size=10_000,
        counted=(1, 2),
        # as many frames to a program as at the size
        scaled=("tvkernels.tome.kernel:PROGRAMS",),
    ),
    Case(
        "token merging, backward",
        "tome_merge",
        backward(merge),
        merge_backward_floor,
        size=10_000,
        counted=(1, 2),
    ),
    Case(
        "transfer into the text",
        "gated_cross_attention",
        transfer,
        transfer_floor,
        size=80_000,
        # as many splits of the keys as at the size, each of whole tiles
        counted=(704, 1408),
        scaled=("tvkernels.gated_cross_attention.kernel:KEYS",),
    ),
    Case(
        "transfer into the text, backward",
        "gated_cross_attention",
        backward(transfer_of(8)),
        transfer_backward_floor,
        size=80_000,
        counted=(704, 1408),
        part=8,
        scaled=("tvkernels.gated_cross_attention.kernel:KEYS",),
        divided=("tvkernels.gated_cross_attention.kernel:PROGRAMS",),
    ),
    Case(
        "selection", "attention_topk", select, select_floor, size=80_000, counted=(1024, 2048, 3072)
    ),
    Case(
        "selection from hidden states",
        "attention_topk_hidden",
        select_hidden,
        select_hidden_floor,
        size=80_000,
        counted=(1024, 2048, 3072),
    ),
    Case("rows taken out", "compact", leave, leave_floor, size=80_000, counted=(160, 320, 480)),
    Case(
        "rows taken out, backward",
        "compact",
        backward(leave),
        leave_floor,
        size=80_000,
        counted=(160, 320, 480),
    ),
)
