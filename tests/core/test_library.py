"""kernel_op: an operator under torch.compile, autograd and dispatch modes, else a plain call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tvkernels.core.library import distinct, kernel_op

calls: list[str] = []


def _fake_scaled(x: Tensor, factor: float, bias: Tensor | None = None) -> Tensor:
    return torch.empty_like(x)


@kernel_op("tvkernels::test_scaled", fake=_fake_scaled)
def scaled(x: Tensor, factor: float, bias: Tensor | None = None) -> Tensor:
    """x * factor + bias."""
    calls.append("body")
    return x * factor + (0 if bias is None else bias)


@kernel_op("tvkernels::test_add", fake=lambda state, x: None, mutates_args=("state",))
def add_to(state: Tensor, x: Tensor) -> None:
    state.data.add_(x)


class Watch(TorchDispatchMode):
    seen: list[str]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_positional_keyword_and_default_arguments() -> None:
    x = torch.arange(3.0)
    for y in (scaled(x, 2.0), scaled(factor=2.0, x=x), scaled(x, 2.0, bias=torch.zeros(3))):
        assert torch.equal(y, 2 * x)
    assert scaled.__doc__ == "x * factor + bias."


def test_who_watches_sees_one_operator() -> None:
    x, watch = torch.ones(2), Watch()
    watch.seen = []
    with watch:
        scaled(x, 3.0)
    assert watch.seen[0] == "tvkernels.test_scaled.default"


def test_meta_tensors_never_reach_the_body() -> None:
    calls.clear()
    assert scaled(torch.empty(4, device="meta"), 2.0).shape == (4,)
    assert not calls


def test_it_is_sound() -> None:
    torch.library.opcheck(scaled.op, (torch.ones(3), 2.0, torch.ones(3)))
    torch.library.opcheck(add_to.op, (torch.ones(3), torch.ones(3)))


def test_compiled_it_is_one_node() -> None:
    compiled = torch.compile(lambda x: scaled(x, 2.0) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 3.0))


def test_a_gradient_needs_a_function_around_it() -> None:
    y = scaled(torch.ones(2, requires_grad=True), 2.0)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        y.sum().backward()


def test_writing_is_noticed_by_autograd() -> None:
    state = torch.zeros(2)
    product = (torch.ones(2, requires_grad=True) * state).sum()
    add_to(state, torch.ones(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_writing_under_inference_mode() -> None:
    with torch.inference_mode():
        state = torch.zeros(2)
        add_to(state, torch.ones(2))
    assert state.tolist() == [1.0, 1.0]


def test_distinct_gives_a_view_the_second_time() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    first, again, none, other = distinct(x, x, None, y)
    assert first is x
    assert again is not x
    assert again is not None
    assert again.data_ptr() == x.data_ptr()
    assert none is None
    assert other is y
