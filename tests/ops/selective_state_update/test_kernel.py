"""The kernel of selective_state_update: programs, padding, offsets, operators."""

from __future__ import annotations

import inspect
from unittest.mock import patch

import pytest
import torch

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    check_capture,
    check_contract,
    device,
    on_device,
)
from tests.interpreter import lazily, poisoned_empty
from tests.ops.selective_state_update.common import VARIANTS, naive_step, run, sized, step_inputs
from tvkernels.core.backend import use_backend
from tvkernels.selective_state_update import selective_state_update
from tvkernels.selective_state_update.op import _update


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("held", [128, 512, 4096])
def test_every_number_of_channels_per_program(held: int) -> None:
    """The number of channels per program is not tuned and must not change the result."""
    inputs = {
        k: v.float() if isinstance(v, torch.Tensor) else v
        for k, v in sized(1, 2, 1, 20, 100).items()
    }
    with use_backend("triton"), poisoned_empty():
        expected = run(**on_device(inputs))
        with patch("tvkernels.selective_state_update.kernel.TILE", held):
            got = run(**on_device(inputs))
            check_contract(run, naive_step, inputs)
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_padding_is_not_looked_at(backend: str) -> None:
    """Whatever stands in a padding entry, its output is 0 and no state is written."""
    inputs = step_inputs(**VARIANTS["padding"])
    for name in ("x", "dt", "B", "C", "z"):
        inputs[name] = inputs[name].clone()
        inputs[name][0] = float("nan")
    inputs["state"][0] = float("nan")
    out, state = run(**inputs)
    assert not out[0].any()
    assert not out[1].isnan().any()
    assert torch.equal(state[[1, 2, 4]], inputs["state"][[1, 2, 4]])


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("size", [(2, 2, 1, 37, 100), (2, 2, 2, 5, 6)], ids=str)
def test_nothing_else_is_written(size: tuple[int, int, int, int, int]) -> None:
    """Nothing is written past the output, next to a state that is a slice, or in the rows before it."""
    with use_backend("triton"):
        inputs = sized(*size)
        inputs["state_batch_indices"] = torch.tensor([-1, 0], device=device())
        batch, nheads, dim, dstate = inputs["state"].shape
        pool = torch.full(
            (4, nheads, dim + 3, dstate + 5), 7.0, dtype=torch.float64, device=device()
        )
        state = pool[1:3, :, :dim, :dstate].copy_(inputs["state"])
        guarded = torch.full(
            (batch * nheads * dim + 64,), 7.0, dtype=torch.float64, device=device()
        )
        out = guarded[:-64].view(batch, nheads, dim)
        with patch("torch.empty_like", lambda *_, **__: out):
            got = selective_state_update(**{**inputs, "state": state})
        assert got.data_ptr() == out.data_ptr()
        assert bool((guarded[-64:] == 7).all())
        state.fill_(7)
        assert bool((pool == 7).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(backend: str, dtype: torch.dtype) -> None:
    inputs = sized(2, 4, 2, 37, 100)
    inputs = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    assert all(torch.equal(a, b) for a, b in zip(run(**inputs), run(**inputs)))


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    with use_backend("triton"):
        inputs = step_inputs(**VARIANTS["padding"])
        state, start = inputs.pop("state"), inputs["state"].clone()

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            state.copy_(start)
            return selective_state_update(state, **inputs), state.clone()

        check_capture(step)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("variant", ["full", "bare", "per head", "padding"])
def test_the_operator_is_sound(variant: str) -> None:
    with use_backend("triton"):
        inputs = {"state_batch_indices": None, **step_inputs(**VARIANTS[variant])}
        names = inspect.signature(selective_state_update).parameters
        torch.library.opcheck(_update.op, tuple(inputs[name] for name in names))


AXES = {"state": 4, "x": 3, "dt": 3, "z": 3, "A": 3, "B": 3, "C": 3, "D": 2, "dt_bias": 2}
AXES["state_batch_indices"] = 1


@pytest.mark.parametrize(("which", "axis"), [(n, i) for n, k in AXES.items() for i in range(k)])
def test_offsets_past_32_bits(backend: str, which: str, axis: int) -> None:
    """The stride fits 32 bits; twice the stride, at the last of three indices, does not."""
    inputs = sized(3, 3, 3, 3, 3)
    inputs = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    inputs["state_batch_indices"] = torch.tensor([1, 0, 2], dtype=torch.int32, device=device())
    near = inputs[which]
    strides = list(near.stride())
    strides[axis] = 2**30
    far = lazily(tuple(near.shape), tuple(strides), near.dtype, device()).copy_(near)
    out, state = run(**inputs)
    # written in place where it lies
    mine = far if which == "state" else inputs["state"].clone()
    got = selective_state_update(**{**inputs, which: far, "state": mine})
    assert_alike(got, out, rounding=COMPILED)
    assert_alike(mine, state, rounding=COMPILED)
