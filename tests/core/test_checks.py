"""The one wording of a wrong argument: `op: argument must ... (reason), got ...[; remedy]`."""

from __future__ import annotations

import re

import pytest
import torch

from tvkernels.core.checks import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    expect_dtype,
    expect_in_place,
    expect_int,
    expect_ndim,
    expect_offsets,
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


@pytest.mark.parametrize("value", [0.3, None, [1.0], "x"])
def test_what_is_no_tensor_is_named(value):
    with says(f"op: x must be a tensor, got a {type(value).__name__}"):
        expect_dtype("op", "x", value)
    with says(f"op: x must be a tensor, got a {type(value).__name__}"):
        expect_ndim("op", "x", value, "(dim,)", 1)
    with says(f"op: x must be a tensor, got a {type(value).__name__}"):
        expect_shape("op", "x", value, "(dim,)", (1,))


def test_what_is_not_dense_is_named():
    with says("op: x must be a dense tensor, got layout sparse_coo; call .to_dense() first"):
        expect_dtype("op", "x", torch.eye(3).to_sparse())


def test_a_place_in_memory_is_written_once():
    x = torch.zeros(4, 5, 6)
    # views of which no two elements are one
    for view in (x, x[::2, 1:], x.permute(2, 0, 1)[..., ::3], x.diagonal(), x[:, :0], x[0, 0, 0]):
        expect_in_place("op", "x", view)
    # an expanded dimension of one element is expanded in name only
    expect_in_place("op", "x", torch.zeros(4, 1, 6)[:1].expand(1, 1, 6))
    for shape, strides in [((4, 6), (0, 1)), ((4, 6), (5, 1)), ((4, 6), (1, 1)), ((2, 3), (2, 2))]:
        shared = torch.zeros(99).as_strided(shape, strides)
        with says(
            "op: x must have no two elements at one place in memory (it is written in place), "
            f"got shape {shape} with strides {strides}; call .contiguous() first"
        ):
            expect_in_place("op", "x", shared)


@pytest.mark.parametrize("value", [0, 4, 2.0, True, None, "2"])
def test_an_int_is_an_int_in_its_range(value):
    for fine in (1, 3):
        expect_int("op", "n", fine, "be an int between 1 and 3", 1, 3)
    with says(f"op: n must be an int between 1 and 3, got {value!r}"):
        expect_int("op", "n", value, "be an int between 1 and 3", 1, 3)


@pytest.mark.parametrize("form", [list, tuple, torch.tensor])
def test_offsets_rise_from_0_to_the_end(form):
    for fine in ([0, 2, 2, 5], [0, 5]):
        expect_offsets("op", "cu", form(fine), 5, exact=True)
    for short in ([0, 3], [0]):
        expect_offsets("op", "cu", form(short), 5, exact=False)
        with says(f"op: cu must rise from 0 to 5 (the packed length), got {short}"):
            expect_offsets("op", "cu", form(short), 5, exact=True)
    for wrong in ([1, 5], [0, 4, 2, 5], [0, 6], [-1, 5]):
        with says(f"op: cu must rise from 0 to at most 5 (the packed length), got {wrong}"):
            expect_offsets("op", "cu", form(wrong), 5, exact=False)


def test_offsets_of_another_kind_are_refused():
    for value in (7, None, [0, 2.0], [0, True]):
        with says(f"op: cu must be a tensor or a sequence of ints, got {value!r}"):
            expect_offsets("op", "cu", value, 2, exact=False)
    with says("op: cu must be of dtype int32, int64, got float32"):
        expect_offsets("op", "cu", torch.zeros(2), 2, exact=False)
    with says("op: cu must be (n_seqs + 1,), got shape (1, 2)"):
        expect_offsets("op", "cu", torch.zeros(1, 2).int(), 2, exact=False)


def test_offsets_on_a_device_are_not_read():
    expect_offsets("op", "cu", torch.zeros(3, device="meta").int(), 5, exact=True)
