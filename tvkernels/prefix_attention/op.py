"""Attention over a prefix that all rows of a batch may share, and over each row's own tail.

    out = softmax(scale * q [prefix key, tail key]^T) [prefix value, tail value]

Causal within the tail; the prefix is seen whole. The two parts meet by log-sum-exp. Source: Dao et
al. 2022 (arXiv 2205.14135) for the blocks, Juravsky et al. 2024 (arXiv 2402.05099) for the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tvkernels.core.backend import backend_for
from tvkernels.core.checks import (
    INDEX_DTYPES,
    expect_dtype,
    expect_ndim,
    expect_number,
    expect_same_device,
    expect_shape,
    fail,
    on_host,
)
from tvkernels.core.library import kernel_op
from tvkernels.prefix_attention.reference import prefix_attention_ref

__all__ = ["prefix_attention"]

OP = "prefix_attention"
# largest headdim that the kernels hold in registers
MOST = 256


def prefix_attention(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    prefix: tuple[Tensor, Tensor] | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention of each row's last n tokens over the prefix and over the row's own tail.

    out = softmax(scale * q [prefix key, tail key]^T) [prefix value, tail value]

    Token i of row r is the tail's token t = lengths[r] - n + i. It sees the whole prefix and the
    tail's tokens 0 to t.

    Args:
        q: (batch, n, nheads, headdim), the queries of each row's last n tokens.
        key, value: (batch, capacity, nkvheads, headdim), the tails; key head h serves query heads
            h * r to h * r + r - 1 with r = nheads / nkvheads. The n tokens of q are written there
            already. What lies at lengths[r] and behind it may hold anything, NaN too.
        lengths: (batch,) int32 or int64, the tokens written in each row's tail, n to capacity.
        prefix: pair of key and value, each (1 or batch, m, nkvheads, headdim), or None; m may be 0.
            With batch 1 all rows share it. q, key, value and prefix have one dtype.
        scale: factor on q k^T; headdim ** -0.5 by default.

    Returns:
        (batch, n, nheads, headdim) in q's dtype.

    Raises:
        ValueError: a shape, dtype or length is not as above, or an input requires gradients while
            they are recorded.
        NotImplementedError: a headdim above 256 on Triton.
        BackendUnavailable: the backend due for q is not there.

    Numerics: the reference computes in float32 (float64 for float64) and rounds once. On Triton
    products of 16 bit tensors add up in float32, but their operands, among them the softmax's
    weights, are rounded to 16 bits. Memory is linear in n and in the keys. Row r multiplies all its
    lengths[r] values, so a NaN in one of them reaches all its n tokens. The result does not depend
    on the capacity, bit for bit, and on Triton not on the other rows of the batch. Lengths that lie
    on a device are not read by the host; only those on the CPU are checked. Deterministic. For
    inference: no gradient.
    """
    _check(q, key, value, lengths)
    _check_prefix(q, key, prefix)
    if scale is not None:
        expect_number(OP, "scale", scale)
    if backend_for(q, OP) == "reference":
        return prefix_attention_ref(q, key, value, lengths, prefix, scale=scale)
    headdim = q.shape[3]
    if headdim > MOST:
        raise NotImplementedError(
            f"prefix_attention: Triton has headdim up to {MOST}, got {headdim}; "
            'use_backend("reference") has any'
        )
    pair = (None, None) if prefix is None else prefix
    return _attend(q, key, value, lengths, *pair, headdim**-0.5 if scale is None else float(scale))


def _check(q: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> None:
    expect_ndim(OP, "q", q, "(batch, n, nheads, headdim)", 4)
    expect_dtype(OP, "q", q)
    batch, n, nheads, headdim = q.shape
    layout = "(batch, capacity, nkvheads, headdim)"
    expect_shape(OP, "key", key, layout, (batch, None, None, headdim))
    expect_shape(OP, "value", value, layout, key.shape)
    if key.shape[2] < 1 or nheads % key.shape[2]:
        fail(OP, "key", f"have key heads that divide nheads {nheads} (grouped query)", key.shape[2])
    capacity = key.shape[1]
    if capacity < n:
        rule = f"have a capacity of at least n = {n} (it holds the queries' own)"
        fail(OP, "key", rule, capacity)
    for name, x in (("q", q), ("key", key), ("value", value)):
        _expect_of(q, name, x)
    expect_shape(OP, "lengths", lengths, "(batch,)", (batch,))
    expect_dtype(OP, "lengths", lengths, INDEX_DTYPES)
    expect_same_device(OP, q=q, lengths=lengths)
    values = lengths.tolist() if on_host(lengths) else []
    if any(not n <= length <= capacity for length in values):
        fail(OP, "lengths", f"be from n = {n} to the capacity {capacity}", values)


def _check_prefix(q: Tensor, key: Tensor, prefix: tuple[Tensor, Tensor] | None) -> None:
    if prefix is None:
        return
    if not isinstance(prefix, Sequence) or len(prefix) != 2:
        got = f"{len(prefix)} values" if isinstance(prefix, Sequence) else type(prefix).__name__
        fail(OP, "prefix", "be a pair (key, value), or None", got)
    sizes = (None, None, *key.shape[2:])
    expect_shape(OP, "prefix key", prefix[0], "(1 or batch, m, nkvheads, headdim)", sizes)
    if prefix[0].shape[0] not in (1, q.shape[0]):
        fail(OP, "prefix key", f"have batch 1 or {q.shape[0]} (q's)", prefix[0].shape[0])
    layout = "of the shape of prefix key"
    expect_shape(OP, "prefix value", prefix[1], layout, prefix[0].shape)
    for name, x in zip(("prefix key", "prefix value"), prefix):
        _expect_of(q, name, x)


def _expect_of(q: Tensor, name: str, x: Tensor) -> None:
    """`x` has the dtype and the device of q and, as q, no gradient to record."""
    if x.dtype != q.dtype:
        fail(OP, name, f"have the dtype of q ({q.dtype})", x.dtype)
    expect_same_device(OP, **{"q": q, name: x})
    if x.requires_grad and torch.is_grad_enabled():
        rule = "not require gradients (the op is for inference and has none)"
        fail(OP, name, rule, "requires_grad=True", "call it under torch.no_grad()")


def _fake_attend(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


@kernel_op("tvkernels::prefix_attention", fake=_fake_attend)
def _attend(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    prefix_key: Tensor | None,
    prefix_value: Tensor | None,
    scale: float,
) -> Tensor:
    from tvkernels.prefix_attention.kernel import attend

    return attend(q, key, value, lengths, prefix_key, prefix_value, scale)
