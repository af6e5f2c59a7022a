"""The kernel of mamba2_decode_step: layouts, the ring buffer, offsets, operators."""

from __future__ import annotations

import pytest
import torch

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    check_capture,
    compilers,
    device,
    on_device,
)
from tests.interpreter import lazily
from tests.ops.common import exact, randn
from tests.ops.decode_step.common import VARIANTS, naive_step, run, step_inputs
from tvkernels import use_backend
from tvkernels.decode_step import mamba2_decode_step
from tvkernels.decode_step.op import _step

LAYOUTS = {
    "channels contiguous": lambda: (randn(2, 4, 32).mT, randn(2, 4, 3, 5).mT),
    "slices": lambda: (randn(2, 64, 8)[:, ::2, ::2], randn(2, 8, 10, 7)[:, ::2, 3:8, ::2][..., :3]),
    "batch last": lambda: (randn(32, 4, 2).permute(2, 0, 1), randn(4, 5, 3, 2).permute(3, 0, 1, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    inputs = step_inputs(
        zxbcdt=randn(2, 140, seed=1)[:, 5:117:2],
        conv1d_weight=randn(4, 32, seed=4).mT,
        cache_seqlens=torch.tensor(3, device=device()).expand(2),
        A_log=randn(1).expand(4),
        D=randn(8)[::2],
    )
    expected = naive_step(**inputs)
    conv, ssm = LAYOUTS[layout]()
    conv.copy_(inputs["conv_state"])
    ssm.copy_(inputs["ssm_state"])
    y = mamba2_decode_step(**{**inputs, "conv_state": conv, "ssm_state": ssm})
    for got, want in zip((y, conv, ssm), expected):
        torch.testing.assert_close(got, want, **exact)


def test_one_slot_of_the_ring_is_written_and_the_one_that_drops_out_is_not_read(
    backend: str,
) -> None:
    inputs = step_inputs(batch=1, cache_seqlens=torch.tensor([6], device=device()))
    inputs["conv_state"][..., 6 % 4] = torch.nan
    y, conv, _ = run(**inputs)
    assert bool(torch.isfinite(y).all())
    assert torch.equal(conv[0, :, 2], inputs["zxbcdt"][0, 20:52])
    for slot in (0, 1, 3):
        assert torch.equal(conv[..., slot], inputs["conv_state"][..., slot])


def test_a_nan_step_stays_one(backend: str) -> None:
    inputs = step_inputs(dt_limit=(0.1, 1.0))
    inputs["zxbcdt"][0, -1] = torch.nan
    y, _, ssm = run(**inputs)
    assert bool(y[0, 15:].isnan().all())
    assert bool(ssm[0, 3].isnan().all())
    assert bool(y[0, :15].isfinite().all() and y[1].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(backend: str, dtype: torch.dtype) -> None:
    inputs = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in step_inputs(headdim=20, d_state=24).items()
    }
    assert all(torch.equal(a, b) for a, b in zip(run(**inputs), run(**inputs)))


@pytest.mark.parametrize(
    ("which", "shape", "strides"),
    [
        ("zxbcdt", (3, 56), (3 * 2**29, 1)),
        ("zxbcdt", (3, 56), (1, 2**27)),
        ("conv_state", (3, 32, 4), (3 * 2**29, 4, 1)),
        ("conv_state", (3, 32, 4), (2, 2**27, 7)),
        ("conv_state", (3, 32, 4), (2, 7, 2**30)),
        ("ssm_state", (3, 4, 5, 3), (3 * 2**29, 15, 3, 1)),
        ("ssm_state", (3, 4, 5, 3), (15, 2**30, 3, 1)),
        ("ssm_state", (3, 4, 5, 3), (1, 3, 2**30, 13)),
        ("ssm_state", (3, 4, 5, 3), (1, 3, 13, 3 * 2**29)),
        ("conv1d_weight", (32, 4), (2**27, 1)),
        ("conv1d_weight", (32, 4), (1, 3 * 2**29)),
    ],
)
def test_offsets_past_32_bits(
    backend: str, which: str, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    inputs = {
        k: v.bfloat16() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in step_inputs(batch=3).items()
    }
    inputs["cache_seqlens"] = inputs["cache_seqlens"].int()
    expected = run(**inputs)
    near = {k: inputs[k].clone() for k in ("conv_state", "ssm_state")}
    far = lazily(shape, strides, torch.bfloat16, device()).copy_(inputs[which])
    given = {**inputs, **near, which: far}
    y = mamba2_decode_step(**given)
    for got, want in zip((y, given["conv_state"], given["ssm_state"]), expected):
        assert_alike(got, want, rounding=COMPILED)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("variant", ["model", "bare", "rows"])
def test_compiles_in_one_graph(variant: str) -> None:
    inputs = on_device(step_inputs(**VARIANTS[variant]))
    inputs = {
        k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    expected = run(**inputs)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        got = torch.compile(run, fullgraph=True, backend=compiler)(**inputs)
        for a, b in zip(got, expected):
            torch.testing.assert_close(a, b)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("variant", ["model", "bare", "padding"])
def test_operator_is_sound(variant: str) -> None:
    with use_backend("triton"):
        given = {**on_device(step_inputs(**VARIANTS[variant]))}
        limits = given.pop("dt_limit", (0.0, float("inf")))
        rows = given.pop("state_batch_indices", None)
        silu = given.pop("activation", "silu") is not None
        torch.library.opcheck(_step.op, (*given.values(), *limits, silu, rows))


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    """The ring buffer's position lies on the device, so each replay continues from it."""
    with use_backend("triton"):
        inputs = step_inputs(headdim=80, d_state=128)
        start = {k: inputs[k].clone() for k in ("conv_state", "ssm_state", "cache_seqlens")}

        def step() -> tuple[torch.Tensor, ...]:
            for name, state in start.items():
                inputs[name].copy_(state)
            first = mamba2_decode_step(**inputs)
            inputs["cache_seqlens"].add_(1)
            return first, mamba2_decode_step(**inputs), inputs["ssm_state"].clone()

        check_capture(step)


def test_meta_tensors() -> None:
    inputs = {
        k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in step_inputs().items()
    }
    y = mamba2_decode_step(**inputs)
    assert (y.shape, y.dtype, y.device.type) == ((2, 20), torch.float64, "meta")
