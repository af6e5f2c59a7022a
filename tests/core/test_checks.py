"""The one wording of a wrong argument: `op: argument must ... (reason), got ...[; remedy]`."""

from __future__ import annotations

import re

import pytest
import torch

from tvkernels.core.checks import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    expect_dtype,
    expect_ndim,
    expect_same_device,
    expect_shape,
    fail,
)


def says(sentence: str):
    """The error is exactly this sentence."""
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def test_a_failure_is_one_sentence():
    with says("op: keep must be at least 0, got -1"):
        fail("op", "keep", "be at least 0", -1)


def test_a_remedy_ends_the_sentence():
    with says("op: x must be contiguous, got stride (1, 2); call .contiguous() first"):
        fail("op", "x", "be contiguous", "stride (1, 2)", "call .contiguous() first")


def test_ndim_names_the_layout():
    expect_ndim("op", "x", torch.empty(2, 3), "(batch, dim)", 2)
    expect_ndim("op", "x", torch.empty(2), "(dim,) or (batch, dim)", 1, 2)
    with says("op: x must be (batch, dim), got shape (2,)"):
        expect_ndim("op", "x", torch.empty(2), "(batch, dim)", 2)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 1), (2, 3, 5), (0, 3, 4)])
def test_shape_names_layout_and_sizes(shape):
    message = f"op: x must be (b, l, d) = (2, any, 4), got shape {shape}"
    with says(message):
        expect_shape("op", "x", torch.empty(shape), "(b, l, d)", (2, None, 4))


def test_any_size_fits_none():
    for length in (0, 1, 9):
        expect_shape("op", "x", torch.empty(2, length, 4), "(b, l, d)", (2, None, 4))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_every_float_dtype_is_a_float_dtype(dtype):
    expect_dtype("op", "x", torch.empty(1, dtype=dtype))


def test_dtype_names_what_is_allowed():
    with says("op: x must be of dtype float32, bfloat16, float16, float64, got int64"):
        expect_dtype("op", "x", torch.empty(1, dtype=torch.int64))
    with says("op: seq_idx must be of dtype int32, int64, got float32"):
        expect_dtype("op", "seq_idx", torch.empty(1), INDEX_DTYPES)


def test_devices_are_compared_to_the_first_tensor_given():
    here, there = torch.empty(1), torch.empty(1, device="meta")
    expect_same_device("op", x=here, bias=None, weight=here)
    expect_same_device("op", x=there, weight=there)
    with says("op: weight must lie on the device of x (cpu), got meta"):
        expect_same_device("op", bias=None, x=here, weight=there)
