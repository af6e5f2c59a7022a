"""The least that each call of calls.py has to move and to compute, by the name of its row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.shapes.calls import (
    CONV_CHANNELS,
    D_INNER,
    D_STATE,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    IN_PROJ,
    KEEP,
    KV_HEADS,
    MLP,
    NGROUPS,
    NHEADS,
    PATCHES,
    TEXT,
    TOKENS_PER_FRAME,
    VISION_WIDTH,
    WIDTH,
)  # fmt: skip

# what a well written kernel reaches on one H200, not the data sheet; the L2 is the data sheet's
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 790e12
L2_BYTES = 50e6


class Floor(NamedTuple):
    """The least bytes from and to memory, and the useful FLOPs of matrix products."""

    bytes: float
    flops: float = 0.0

    def seconds(
        self, bytes_per_second: float = BYTES_PER_SECOND, flops_per_second: float = FLOPS_PER_SECOND
    ) -> float:
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)


# tensors have 2 bytes an element unless said otherwise; weights are read once


def _rows(width: int, tensors: int, weights: int = 0) -> Callable[[int], Floor]:
    return lambda tokens: Floor(2 * (width * tensors * tokens + weights))


def scan(tokens: int) -> Floor:
    """x, B, C, dt in, y out; products at chunks of 128: C B per group, then three per head."""
    wide = 2 * D_INNER + 2 * NGROUPS * D_STATE + NHEADS
    products = 2 * 128 * D_STATE * NGROUPS + 2 * D_INNER * (128 + 2 * D_STATE)
    return Floor(2 * wide * tokens, products * tokens)


def scan_backward(tokens: int) -> Floor:
    """x, B, C, dt and dy in, dx, dB, dC, ddt out; 19.1 MFLOP of products per token."""
    wide = 3 * D_INNER + 4 * NGROUPS * D_STATE + 2 * NHEADS
    return Floor(2 * wide * tokens, 19.1e6 * tokens)


def _state_update(state_bytes: int) -> Callable[[int], Floor]:
    """The state in and out; x in and y out, B, C, dt; A, D and dt_bias (float32) of each head."""
    per_sequence = 2 * state_bytes * D_INNER * D_STATE
    per_sequence += 2 * (2 * D_INNER + 2 * NGROUPS * D_STATE + NHEADS)
    return lambda batch: Floor(per_sequence * batch + 3 * 4 * NHEADS)


def mixer_step(batch: int) -> Floor:
    """The state in and out; the ring's columns that the taps read in, one column out; the row and
    its place in, y out; the parameters once."""
    ring, row = 2 * CONV_CHANNELS * WIDTH, 2 * (IN_PROJ + D_INNER) + 4
    parameters = 2 * (CONV_CHANNELS * (WIDTH + 1) + 3 * NHEADS)
    return Floor((2 * 4 * D_INNER * D_STATE + ring + row) * batch + parameters)


def merge(frames: int) -> Floor:
    """Every patch once (a kernel that matches first and sums later reads it twice), the tokens,
    sizes, slots; similarities of six rounds on 72 channels."""
    elements = (PATCHES + TOKENS_PER_FRAME) * VISION_WIDTH
    return Floor((2 * elements + 4 * (PATCHES + TOKENS_PER_FRAME)) * frames, 25.5e6 * frames)


def select(tokens: int) -> Floor:
    """Keys in; a score (4 bytes) and an index (8 bytes) of each token out."""
    return Floor((2 * KV_HEADS * HEAD_DIM + 12) * tokens, 2.0 * HEADS * HEAD_DIM * tokens)


def select_hidden(tokens: int) -> Floor:
    """Hidden states in, with the projection folded into the query."""
    return Floor((2 * HIDDEN + 12) * tokens, 2.0 * HEADS * HIDDEN * tokens)


def rows_taken_out(tokens: int) -> Floor:
    """Every row in and out, forward or backward; the indices of dropped rows (8 bytes) in."""
    return Floor((4 * HIDDEN + 8 * (1 - 1 / KEEP)) * tokens)


def transfer(tokens: int) -> Floor:
    """Keys, values and the output's projection in; two products."""
    weight = HIDDEN * HEADS * HEAD_DIM
    flops = 4.0 * TEXT * HEADS * HEAD_DIM * tokens + 2.0 * TEXT * weight
    return Floor(2 * (2 * KV_HEADS * HEAD_DIM * tokens + weight), flops)


def transfer_backward(tokens: int) -> Floor:
    """Keys and values in, their gradients out; five products where the forward has two."""
    weight = HIDDEN * HEADS * HEAD_DIM
    flops = 10.0 * TEXT * HEADS * HEAD_DIM * tokens + 4.0 * TEXT * weight
    return Floor(2 * (4 * KV_HEADS * HEAD_DIM * tokens + 2 * weight), flops)


TAPS = CONV_CHANNELS * (WIDTH + 1)  # with the bias
FLOORS: dict[str, Callable[[int], Floor]] = {
    "gated norm": _rows(D_INNER, 3, D_INNER),
    "gated norm, backward": _rows(D_INNER, 5, 2 * D_INNER),
    "residual norm": _rows(HIDDEN, 4, HIDDEN),
    "residual norm, backward": _rows(HIDDEN, 4, 2 * HIDDEN),
    "activation of the MLP": _rows(MLP, 2),
    "activation of the MLP, backward": _rows(MLP, 3),
    "convolution": _rows(CONV_CHANNELS, 2, TAPS),
    "convolution, backward": _rows(CONV_CHANNELS, 3, 2 * TAPS),
    "scan": scan,
    "scan, backward": scan_backward,
    # x and the state in, y and the state out
    "decode step of the convolution": _rows(CONV_CHANNELS, 2 + 2 * WIDTH, TAPS),
    "decode step of the scan, 32 bit state": _state_update(4),
    "decode step of the scan, 16 bit state": _state_update(2),
    "decode step of the mixer": mixer_step,
    "token merging": merge,
    "token merging, backward": lambda frames: Floor(merge(frames).bytes),
    "transfer into the text": transfer,
    "transfer into the text, backward": transfer_backward,
    "selection": select,
    "selection from hidden states": select_hidden,
    "rows taken out": rows_taken_out,
    "rows taken out, backward": rows_taken_out,
}
