"""mamba2_decode_step against a float64 loop and a recorded mixer."""

from __future__ import annotations

import inspect

import pytest
import torch
from safetensors.torch import load_file

from tests.contract import (
    assert_close_by_rule,
    check_contract,
    device,
    on_device,
)
from tests.ops.common import DATA, DTYPES, exact
from tests.ops.decode_step.common import VARIANTS, composed, naive_step, run, step_inputs
from tvkernels.decode_step import mamba2_decode_step
from tvkernels.rmsnorm import rmsnorm_fn


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, dtype: torch.dtype) -> None:
    check_contract(run, naive_step, step_inputs(**VARIANTS[variant]), dtype=dtype)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_every_place_in_the_ring(index: torch.dtype) -> None:
    for seen in (0, 3, 4, 5, 2**31 - 2):
        seqlens = torch.tensor([seen, seen + 1], dtype=index, device=device())
        check_contract(run, naive_step, step_inputs(cache_seqlens=seqlens))
        check_contract(run, naive_step, step_inputs(cache_seqlens=seqlens, state_len=5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_state_beside_16_bit_tokens(backend: str, dtype: torch.dtype) -> None:
    """The model's own dtypes."""
    inputs = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in step_inputs().items()
    }
    inputs["ssm_state"] = step_inputs()["ssm_state"].float()
    doubles = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    names = ("y", "conv_state", "ssm_state")
    rows = zip(names, run(**inputs), naive_step(**inputs), naive_step(**doubles))
    for name, got, plain, truth in rows:
        assert got.dtype == (torch.float32 if name == "ssm_state" else dtype)
        assert_close_by_rule(got, plain, truth, name)


def test_output_is_read_before_the_state_is_rounded(backend: str) -> None:
    inputs = {
        k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in step_inputs().items()
    }
    inputs["ssm_state"] = inputs["ssm_state"].bfloat16()
    y, _, state = run(**inputs)
    expected, _, wide = run(**{**inputs, "ssm_state": inputs["ssm_state"].float()})
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(state, wide.bfloat16())


@pytest.mark.parametrize("programs", [528, 5, 1])
@pytest.mark.parametrize(("headdim", "d_state"), [(80, 128), (64, 128), (50, 96), (1, 1)])
def test_sizes_of_models(
    backend: str, headdim: int, d_state: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 9B model's size, common ones, odd ones, the smallest; heads split among programs or not."""
    if backend == "triton":
        monkeypatch.setattr("tvkernels.decode_step.kernel.PROGRAMS", programs)
    inputs = step_inputs(1, 4, headdim, 2, d_state)
    for got, want in zip(run(**inputs), composed(**inputs)):
        torch.testing.assert_close(got, want, **exact)


def test_golden_decode_steps_of_the_mixer(backend: str) -> None:
    golden = on_device(load_file(DATA / "mamba_mixer.safetensors"))
    weight = {k.removeprefix("weight."): v for k, v in golden.items() if k.startswith("weight.")}
    conv, ssm = golden["conv_state"].clone(), golden["ssm_state"].clone()
    outs = []
    for t, u in enumerate(golden["step_input"].unbind(1)):
        y = mamba2_decode_step(
            u @ weight["in_proj.weight"].T, conv, ssm, torch.full((2,), t, device=device()),
            weight["conv1d.weight"].squeeze(1), weight["conv1d.bias"],
            weight["dt_bias"], weight["A_log"], weight["D"],
        )  # fmt: skip
        y = rmsnorm_fn(y, weight["norm.weight"], None, None, 1e-5, 160, False)
        outs.append(y @ weight["out_proj.weight"].T)
    torch.testing.assert_close(torch.stack(outs, 1), golden["step_output"], atol=2e-5, rtol=0)
    torch.testing.assert_close(ssm, golden["ssm_state_after_steps"], atol=2e-5, rtol=0)
    # four steps in a ring of four: it begins where it began
    torch.testing.assert_close(conv, golden["conv_state_after_steps"], atol=2e-5, rtol=0)


def test_is_for_inference(backend: str) -> None:
    inputs = step_inputs()
    inputs["zxbcdt"].requires_grad_()
    inputs["A_log"].requires_grad_()
    assert not any(t.requires_grad for t in run(**inputs))


def test_an_empty_batch(backend: str) -> None:
    y, conv, ssm = run(**step_inputs(batch=0))
    assert (y.shape, conv.shape, ssm.shape) == ((0, 20), (0, 32, 4), (0, 4, 5, 3))


def test_parameters_can_be_read_by_name() -> None:
    names = "zxbcdt conv_state ssm_state cache_seqlens conv1d_weight conv1d_bias dt_bias A_log D"
    names += " dt_limit activation state_batch_indices"
    assert list(inspect.signature(mamba2_decode_step).parameters) == names.split()
