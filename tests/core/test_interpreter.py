"""The interpreter's arithmetic, roundings and masked lanes, and the tensors tests allocate for it."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests.contract import TRITON
from tests.interpreter import (
    INTERPRETED,
    fenced_empty,
    from_bits,
    lazily,
    poisoned_empty,
    to_bits,
)

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU"),
]

if TRITON:
    import triton
    import triton.language as tl

    DEVICE = "cpu" if INTERPRETED else "cuda"

    @triton.jit
    def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n, other=0.0)
        tl.store(y_ptr + i, x.to(y_ptr.dtype.element_ty), mask=i < n)

    @triton.jit
    def arithmetic_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
        i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
        a, b = tl.load(a_ptr + i), tl.load(b_ptr + i)
        tl.store(out_ptr + i, tl.dot(a, b))
        tl.store(out_ptr + N * N + i, (a + b).to(tl.float32))
        tl.store(out_ptr + 2 * N * N + i, (a * b).to(tl.float32))
        tl.store(out_ptr + 3 * N * N + i, tl.where(a < b, 1.0, 0.0))
        tl.store(out_ptr + 4 * N * N + i, tl.abs(a).to(tl.float32))

    @triton.jit
    def unmasked_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < 2))


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x as a kernel stores it into a tensor of another dtype."""
    y = torch.empty(x.shape, dtype=dtype, device=DEVICE)
    copy_kernel[(triton.cdiv(x.numel(), 1024),)](x.to(DEVICE), y, x.numel(), BLOCK=1024)
    return y.cpu()


def every_bfloat16() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def test_bits_of_every_bfloat16_survive() -> None:
    bits = every_bfloat16()
    again = to_bits(from_bits(bits))
    nan = np.isnan(from_bits(bits))
    assert (again[~nan] == bits[~nan]).all()
    assert np.isnan(from_bits(again[nan])).all()


def test_float32_to_bfloat16_rounds_as_torch_does() -> None:
    values = torch.from_numpy(from_bits(every_bfloat16()).copy())
    values = values[torch.isfinite(values)]
    for step in (1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        between = (values.view(torch.int32) + step).view(torch.float32)
        got = rounded(between, torch.bfloat16)
        assert torch.equal(got, between.to(torch.bfloat16))
        if INTERPRETED:
            expected = between.to(torch.bfloat16).view(torch.uint16).numpy()
            assert (to_bits(between.numpy()) == expected).all()


def test_float32_to_float16_rounds_as_torch_does() -> None:
    values = torch.arange(1 << 15, dtype=torch.int32) * 4096 + 0x38000000
    x = (values + 0x1000).view(torch.float32)
    assert torch.equal(rounded(x, torch.float16), x.half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_arithmetic(dtype: torch.dtype) -> None:
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    a, b = a.to(dtype), b.to(dtype)
    out = torch.empty(5, 16, 16, device=DEVICE)
    arithmetic_kernel[(1,)](a.to(DEVICE), b.to(DEVICE), out, N=16)
    dot, total, product, less, absolute = out.cpu()
    # tf32 on a GPU: ten bits of mantissa
    bound = 2e-2 if DEVICE == "cuda" and dtype == torch.float32 else 1e-5
    torch.testing.assert_close(dot, a.float() @ b.float(), atol=bound, rtol=bound)
    assert torch.equal(total, (a + b).float())
    assert torch.equal(product, (a * b).float())
    assert torch.equal(less, (a < b).float())
    assert torch.equal(absolute, a.abs().float())


@pytest.mark.skipif(not INTERPRETED, reason="what a GPU reads there is anything")
def test_lanes_that_are_off_are_nan() -> None:
    y = torch.empty(4)
    unmasked_kernel[(1,)](torch.ones(4), y, BLOCK=4)
    assert y.isnan().tolist() == [False, False, True, True]


def test_poisoned_empty_is_nan_or_the_least_integer() -> None:
    with poisoned_empty():
        for x in (torch.empty(2), torch.empty_like(torch.ones(2)), torch.ones(1).new_empty(2)):
            assert x.isnan().all()
        assert torch.empty(1, dtype=torch.int32).item() == -(2**31)
    assert torch.empty is not None


@pytest.mark.parametrize(("read", "written"), [(2, 4), (1, 4), (2, 3)])
def test_fences_tell_what_is_read_and_written_beside_a_tensor(read: int, written: int) -> None:
    """The kernel reads 2 and writes 4; compiled, a read alone does not show."""
    beside = pytest.raises(Exception, match="beside")
    wrong = written < 4 or (INTERPRETED and read < 2)
    with beside if wrong else nullcontext(), fenced_empty():
        x, y = torch.empty(read, device=DEVICE), torch.empty(written, device=DEVICE)
        unmasked_kernel[(1,)](x.fill_(1), y, BLOCK=4)
        assert y[:read].tolist() == [1.0] * read


def test_lazy_storage_costs_what_is_touched() -> None:
    x = lazily((2, 3), (2**31, 1), torch.bfloat16)
    x[1, 2] = 5.0
    assert x.untyped_storage().nbytes() == 2 * (2**31 + 3)
    assert x.tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]]
