"""relu2 against a mask in float64 and PyTorch's own operations."""

from __future__ import annotations

import pytest
import torch

from tests.contract import (
    TRITON,
    check_contract,
    device,
)
from tests.ops.common import DTYPES, randn
from tests.ops.relu2.common import LAYOUTS, naive
from tvkernels.relu2 import relu2


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_contract(layout: str, dtype: torch.dtype) -> None:
    check_contract(relu2, naive, {"x": LAYOUTS[layout]()}, dtype=dtype, wrt=("x",))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_are_those_of_an_elementwise_operation(backend: str, layout: str) -> None:
    x = LAYOUTS[layout]()
    ours, theirs = (y.squeeze().stride() for y in (relu2(x), torch.relu(x)))
    assert ours == theirs


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
def test_bits_are_those_of_torch(backend: str, dtype: torch.dtype) -> None:
    """Forward and backward round once, as relu and square do."""
    x = (100 * randn(3000)).to(dtype).requires_grad_()
    dy = randn(3000, seed=1).to(dtype)
    plain = torch.relu(x).square()
    assert torch.equal(relu2(x), plain)
    expected, got = (torch.autograd.grad(y, x, dy)[0] for y in (plain, relu2(x)))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_not_a_number_and_infinity(backend: str) -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([nan, inf, -inf, -0.0, 0.0, -1.0, 2.0], device=device(), requires_grad=True)
    y = relu2(x)
    assert y.isnan().tolist() == [True] + [False] * 6
    assert y[1:].tolist() == [inf, 0, 0, 0, 0, 4]
    for dy, live in ((1.0, 4.0), (inf, inf)):
        (dx,) = torch.autograd.grad(y, x, torch.full_like(x, dy), retain_graph=True)
        assert dx[0].isnan()
        assert dx[1:].tolist() == [inf, 0, 0, 0, 0, live]


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_copied_where_a_view_serves_and_dense_is_one_row(layout: str) -> None:
    from tvkernels.relu2.kernel import _as_rows

    x = LAYOUTS[layout]()
    (rows,) = _as_rows(torch.empty_like(x), x)
    assert (rows.data_ptr() == x.data_ptr()) == (layout != "no two strides")
    assert rows.numel() == x.numel()
    dense = x.numel() == 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride()))
    assert rows.shape[0] == 1 or not dense


def test_nothing(backend: str) -> None:
    x = torch.zeros(0, 3, 16, device=device(), requires_grad=True)
    y = relu2(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
