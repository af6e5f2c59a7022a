"""The kernel of replay_state_update: blocks, padding, offsets, operators."""

from __future__ import annotations

import inspect
from unittest.mock import patch

import pytest
import torch

from tests.contract import COMPILED, TRITON, assert_alike, check_capture, device
from tests.interpreter import lazily, poisoned_empty
from tests.ops.replay_state_update.common import (
    HELD,
    PER_TOKEN,
    VARIANTS,
    fed,
    fresh,
    run,
    step_inputs,
    tokens,
)
from tvkernels import replay_flush, replay_state_update, use_backend
from tvkernels.replay_state_update.op import _flush, _update

needs_triton = pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")


@pytest.mark.triton
@needs_triton
@pytest.mark.parametrize("held", [128, 4096])
def test_every_number_of_channels_per_block(held: int) -> None:
    """The number of channels per block is not tuned and must not change the result."""
    with use_backend("triton"), poisoned_empty():
        given = step_inputs(dim=20, dstate=100, heads=2, groups=1, seqlen=2)
        expected = run(**given)
        with patch("tvkernels.replay_state_update.kernel.TILE", held):
            got = run(**given)
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_padding_is_not_looked_at(backend: str) -> None:
    """Whatever stands in a padding entry, its output is 0 and nothing is written."""
    given = step_inputs(**VARIANTS["padding"])
    for name in PER_TOKEN:
        given[name] = given[name].clone()
        given[name][0] = torch.nan
    # neither is a row that no entry names
    for name in HELD[:-1]:
        given[name][0] = torch.nan
    given["cache_seqlens"][0] = 2**31 - 1
    out, *held = run(**given)
    assert not out[0].any()
    assert bool(out[1].isfinite().all())
    for name, after in zip(HELD, held):
        rows = [0, 1, 2, 4]
        assert torch.equal(after[rows].nan_to_num(), given[name][rows].nan_to_num())


@pytest.mark.triton
@needs_triton
def test_nothing_else_is_written() -> None:
    """No element between and behind the slices that a call works on."""
    with use_backend("triton"):
        given = step_inputs(seqlen=2)
        whole = {}
        for name in HELD:
            t = given[name]
            whole[name] = torch.full([n + 2 for n in t.shape], 7, dtype=t.dtype, device=t.device)
            given[name] = whole[name][tuple(slice(1, -1) for _ in t.shape)].copy_(t)
        replay_state_update(**given)
        for name, t in whole.items():
            given[name].fill_(7)
            assert bool((t == 7).all()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(backend: str, dtype: torch.dtype) -> None:
    def outs() -> torch.Tensor:
        sizes = {"dim": 37, "dstate": 100, "heads": 2, "groups": 1}
        return fed(fresh(1, 2, dtype, **sizes), tokens(1, 4, dtype, **sizes), [1, 2, 4])

    assert torch.equal(outs(), outs())


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    with use_backend("triton"):
        given = step_inputs(**VARIANTS["padding"])
        start = {name: given[name].clone() for name in HELD}

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            for name, t in start.items():
                given[name].copy_(t)
            return replay_state_update(**given), given["state"].clone()

        check_capture(step)


@pytest.mark.triton
@needs_triton
@pytest.mark.parametrize("variant", ["several tokens", "bare", "padding"])
def test_the_operators_are_sound(variant: str) -> None:
    with use_backend("triton"):
        given = {"state_batch_indices": None, **step_inputs(**VARIANTS[variant])}
        given |= {"dt_least": 0.0, "dt_greatest": 1.0}
        names = inspect.signature(_update).parameters
        torch.library.opcheck(_update.op, tuple(given[name] for name in names))
        names = inspect.signature(replay_flush).parameters
        torch.library.opcheck(_flush.op, tuple(given[name] for name in names))


AXES = {"state": 4, "pending_x": 4, "pending_dt": 4, "pending_B": 4, "written": 2, "x": 4, "dt": 3}
AXES |= {"B": 4, "C": 4, "z": 4, "A": 1, "D": 1, "dt_bias": 1, "cache_seqlens": 1}
AXES |= {"state_batch_indices": 1}


@pytest.mark.parametrize(("which", "axis"), [(n, i) for n, k in AXES.items() for i in range(k)])
def test_offsets_past_32_bits(backend: str, which: str, axis: int) -> None:
    """The stride fits 32 bits; twice the stride, at the last of three indices, does not."""
    given = step_inputs(3, seqlen=2, capacity=2, heads=3, groups=3, dim=3, dstate=3)
    given = {
        k: v.bfloat16() if getattr(v, "dtype", None) == torch.float64 else v
        for k, v in given.items()
    }
    given["pending_dt"] = given["pending_dt"].float()
    given["state_batch_indices"] = torch.tensor([1, 0, 2], dtype=torch.int32, device=device())
    given["cache_seqlens"] = given["written"][:, 0][[1, 0, 2]] + 2
    near = given[which]
    strides = list(near.stride())
    strides[axis] = 2**30 if near.shape[axis] > 2 else 3 * 2**29
    far = lazily(tuple(near.shape), tuple(strides), near.dtype, device()).copy_(near)
    (out, *expected), held = run(**given), {name: given[name].clone() for name in HELD}
    held |= {which: far} if which in HELD else {}
    got = replay_state_update(**{**given, which: far, **held})
    assert_alike(got, out, rounding=COMPILED)
    for name, want in zip(HELD, expected):
        assert_alike(held[name], want, rounding=COMPILED)
