"""relu2 against a mask in float64, PyTorch's own operations, and its laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import (
    COMPILED,
    TRITON,
    check_capture,
    check_contract,
    compilers,
    device,
    every_config,
)
from tests.interpreter import lazily, poisoned_empty
from tests.ops.common import DTYPES, law, randn
from tvkernels import use_backend
from tvkernels.relu2 import relu2
from tvkernels.relu2.op import _relu2_bwd, _relu2_fwd


def naive(x: torch.Tensor) -> torch.Tensor:
    """By a mask, in one wide dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * wide * (wide > 0)).to(x.dtype)


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "vector": lambda: randn(37),
    "no dimension": lambda: randn(1)[0],
    "several programs": lambda: randn(3, 7, 1000),
    "slice": lambda: randn(5, 7, 40)[..., 3:30],
    "wide slice": lambda: randn(3, 9001)[:, 1:8999],
    "transposed": lambda: randn(4, 6, 5).mT,
    "batch last": lambda: randn(6, 5, 4).permute(2, 0, 1),
    "every other": lambda: randn(4, 30)[:, ::2],
    "many short rows": lambda: randn(700, 4)[:, :3],
    "no two strides": lambda: randn(4, 6, 10)[::2, ::2, :7],
    "expanded": lambda: randn(1, 7).expand(5, 7),
    "a scalar expanded": lambda: randn(1)[0].expand(3, 4),
    "sizes of one": lambda: randn(3, 1, 8)[:, :, 2:7].unsqueeze(0),
    "a size of one, its stride far": lambda: randn(30).as_strided((5, 1, 6), (6, 1000, 1)),
}


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


@law
@given(scale=st.floats(0, 100), rows=st.integers(1, 5), width=st.integers(1, 70))
def test_law_scaling_squares(backend: str, scale: float, rows: int, width: int) -> None:
    """relu2(c x) = c^2 relu2(x) for c >= 0; of x and -x one is 0, and both make x^2."""
    x = randn(rows, width)
    torch.testing.assert_close(relu2(scale * x), scale**2 * relu2(x), atol=1e-9, rtol=1e-9)
    assert torch.equal(relu2(x) + relu2(-x), x * x)
    assert not (relu2(x) * relu2(-x)).any()


@law
@given(cut=st.integers(0, 60), dim=st.integers(0, 1))
def test_law_parts_are_each_alone(backend: str, cut: int, dim: int) -> None:
    x = randn(60, 60)
    parts = x.tensor_split([cut], dim)
    assert torch.equal(torch.cat([relu2(part) for part in parts], dim), relu2(x))


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
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_copied_where_a_view_serves_and_dense_is_one_row(layout: str) -> None:
    from tvkernels.relu2.kernel import _as_rows

    x = LAYOUTS[layout]()
    (rows,) = _as_rows(torch.empty_like(x), x)
    assert (rows.data_ptr() == x.data_ptr()) == (layout != "no two strides")
    assert rows.numel() == x.numel()
    dense = x.numel() == 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride()))
    assert rows.shape[0] == 1 or not dense


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
    """Both kernels ship the same ones."""
    from tvkernels.core.tune import forced

    assert set(map(id, every_config(KERNELS[1]))) == set(map(id, every_config(KERNELS[0])))
    with use_backend("triton"), poisoned_empty(), forced(config):
        for layout in ("several programs", "slice", "wide slice", "many short rows"):
            test_contract(layout, torch.float32)


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


def test_nothing(backend: str) -> None:
    x = torch.zeros(0, 3, 16, device=device(), requires_grad=True)
    y = relu2(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_meta_tensors() -> None:
    y = relu2(torch.empty(2, 600, 1024, dtype=torch.bfloat16, device="meta"))
    assert (tuple(y.shape), y.dtype, y.device.type) == ((2, 600, 1024), torch.bfloat16, "meta")


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(3, dtype=torch.int32), "relu2: x must be of dtype .*, got int32"),
        ([1.0], "relu2: x must be a tensor, got a list"),
    ],
)
def test_errors(x: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        relu2(x)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_second_order_gradients_of_the_kernel_say_that_they_are_absent() -> None:
    with use_backend("triton"):
        x = randn(40).requires_grad_()
        (first,) = torch.autograd.grad(relu2(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
