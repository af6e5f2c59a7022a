"""The kernels of relu2: configurations, offsets, operators."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.contract import (
    COMPILED,
    TRITON,
    check_capture,
    compilers,
    device,
    every_config,
)
from tests.interpreter import lazily, poisoned_empty
from tests.ops.common import randn
from tests.ops.relu2 import test_contract as contract
from tests.ops.relu2.common import LAYOUTS
from tvkernels import use_backend
from tvkernels.relu2 import relu2
from tvkernels.relu2.op import _relu2_bwd, _relu2_fwd


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", ["several programs", "slice", "transposed"])
def test_compiles_in_one_graph(layout: str) -> None:
    x, weights = LAYOUTS[layout]().requires_grad_(), randn(*LAYOUTS[layout]().shape, seed=1)
    expected = relu2(x)
    (dx,) = torch.autograd.grad((expected * weights).sum(), x)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        got = torch.compile(relu2, fullgraph=True, backend=compiler)(x)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()
        assert torch.equal(torch.autograd.grad((got * weights).sum(), x)[0], dx)


KERNELS = [f"tvkernels.relu2.kernel:relu2_{way}_kernel" for way in ("forward", "backward")]


@pytest.mark.triton
@pytest.mark.parametrize("config", every_config(*KERNELS[:1]), ids=str)
def test_every_configuration(config: Any) -> None:
    """Both kernels have the same configurations."""
    from tvkernels.core.tune import forced

    assert set(map(id, every_config(KERNELS[1]))) == set(map(id, every_config(KERNELS[0])))
    with use_backend("triton"), poisoned_empty(), forced(config):
        for layout in ("several programs", "slice", "wide slice", "many short rows"):
            contract.test_contract(layout, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(backend: str, dtype: torch.dtype) -> None:
    x = randn(3, 5000).to(dtype).requires_grad_()
    runs = [(y, *torch.autograd.grad(y.sum(), x)) for y in (relu2(x), relu2(x))]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    with use_backend("triton"):
        x = randn(3, 5000).bfloat16().requires_grad_()

        def step() -> tuple[torch.Tensor, ...]:
            y = relu2(x)
            return y, *torch.autograd.grad(y, x, y)

        check_capture(step)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_are_sound(layout: str) -> None:
    with use_backend("triton"):
        x = LAYOUTS[layout]()
        torch.library.opcheck(_relu2_fwd.op, (x,))
        torch.library.opcheck(_relu2_bwd.op, (torch.ones_like(x), x))


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("layout", ["several programs", "slice", "many short rows"])
def test_nothing_is_written_beyond_the_result(layout: str) -> None:
    with use_backend("triton"):
        x = LAYOUTS[layout]()
        guarded = torch.full((x.numel() + 5000,), 7.0, dtype=x.dtype, device=x.device)
        out = guarded[: x.numel()].view(x.shape)
        for run in (lambda: _relu2_fwd(x), lambda: _relu2_bwd(x, x)):
            with patch("torch.empty_like", lambda *_, **__: out):
                assert run().data_ptr() == out.data_ptr()
            assert bool((guarded[x.numel() :] == 7).all())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("which", ["x", "dy"])
def test_offsets_past_32_bits(backend: str, which: str, axis: int) -> None:
    """The stride itself fits 32 bits, so that only the product with the row does not."""
    strides = [20, 1] if axis == 0 else [1, 20]
    strides[axis] = 3 * 2**29
    near = {"x": randn(3, 3).bfloat16(), "dy": randn(3, 3, seed=1).bfloat16()}
    far = lazily((3, 3), tuple(strides), torch.bfloat16, device()).copy_(near[which])

    def run(x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaf = x.detach().requires_grad_()
        y = relu2(leaf)
        return y, *torch.autograd.grad(y, leaf, dy)

    for got, expected in zip(run(**{**near, which: far}), run(**near)):
        assert torch.equal(got, expected)


def test_meta_tensors() -> None:
    y = relu2(torch.empty(2, 600, 1024, dtype=torch.bfloat16, device="meta"))
    assert (tuple(y.shape), y.dtype, y.device.type) == ((2, 600, 1024), torch.bfloat16, "meta")
