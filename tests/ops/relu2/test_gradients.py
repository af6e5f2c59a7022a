"""Gradients of relu2: any layout, what is kept for the backward, second order."""

from __future__ import annotations

import pytest
import torch

from tests.contract import (
    TRITON,
)
from tests.ops.common import randn
from tests.ops.relu2.common import naive
from tvkernels import use_backend
from tvkernels.relu2 import relu2

DY = {
    "sum": lambda y: y.sum(),
    "slice": lambda y: torch.cat([y, y], -1).mul(randn(6, 14)).sum(),
    "transposed": lambda y: y.mT.mul(randn(7, 6)).sum(),
    "strided": lambda y: torch.stack([y, y], -1).mul(randn(6, 7, 2)).sum(),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("way", DY)
def test_gradients_arrive_in_any_layout(way: str) -> None:
    x = randn(6, 7).requires_grad_()
    for leaf in (x, x.detach().mT.contiguous().mT.requires_grad_()):
        got, expected = (torch.autograd.grad(DY[way](f(leaf)), leaf)[0] for f in (relu2, naive))
        torch.testing.assert_close(got, expected)


def kept(x: torch.Tensor) -> set[int]:
    """Addresses of the storages that the backward pass of relu2(x) keeps."""
    seen: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        relu2(x)
    return {t.untyped_storage().data_ptr() for t in seen}


def test_one_tensor_is_kept_for_the_backward_pass(backend: str) -> None:
    x = randn(6, 7).requires_grad_()
    addresses = kept(x)
    assert len(addresses) == 1
    if backend == "triton":
        assert addresses == {x.untyped_storage().data_ptr()}


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_second_order_gradients_of_the_kernel_say_that_they_are_absent() -> None:
    with use_backend("triton"):
        x = randn(40).requires_grad_()
        (first,) = torch.autograd.grad(relu2(x).square().sum(), x, create_graph=True)
        with pytest.raises(
            RuntimeError, match="only first order gradients, got a second derivative"
        ):
            first.sum().backward()
