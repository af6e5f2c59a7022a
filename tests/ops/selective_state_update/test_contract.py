"""selective_state_update against a float64 recurrence and the decode steps of a recorded mixer."""

from __future__ import annotations

import inspect

import pytest
import torch
from safetensors.torch import load_file

from tests.contract import assert_close_by_rule, check_contract, compilers, on_device
from tests.footprint import largest_tensor
from tests.ops.common import DATA, DTYPES, exact, randn
from tests.ops.selective_state_update.common import (
    PER_HEAD,
    VARIANTS,
    naive_step,
    run,
    sized,
    step_inputs,
)
from tvkernels.causal_conv1d import causal_conv1d_update
from tvkernels.core.backend import use_backend
from tvkernels.rmsnorm import rmsnorm_fn
from tvkernels.selective_state_update import selective_state_update


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, dtype: torch.dtype) -> None:
    check_contract(run, naive_step, step_inputs(**VARIANTS[variant]), dtype=dtype)


SIZES = {
    "headdim 80": (1, 2, 1, 80, 128),
    "headdim 64": (1, 1, 1, 64, 16),
    "several programs, none full": (2, 4, 2, 37, 100),
    "one channel": (2, 2, 1, 1, 3),
    "one state": (2, 2, 1, 9, 1),
    "many states": (1, 2, 2, 3, 300),
    "one head": (3, 1, 1, 70, 40),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: str) -> None:
    check_contract(run, naive_step, sized(*SIZES[size]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_state_beside_16_bit_tokens(backend: str, dtype: torch.dtype) -> None:
    inputs = step_inputs(**PER_HEAD)
    small = {k: v.to(dtype) if k in ("x", "B", "C", "z", "dt") else v for k, v in inputs.items()}
    small = {
        k: v.float() if getattr(v, "dtype", None) == torch.float64 else v for k, v in small.items()
    }
    truth = naive_step(
        **{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in small.items()}
    )
    plain, plain_state = naive_step(**small)
    out, state = run(**small)
    assert (out.dtype, state.dtype) == (dtype, torch.float32)
    assert_close_by_rule(out, plain, truth[0], "out")
    assert_close_by_rule(state, plain_state, truth[1], "state")


def test_output_is_read_before_the_state_is_rounded(backend: str) -> None:
    inputs = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in step_inputs().items()}
    state = inputs["state"].bfloat16()
    out, _ = run(**{**inputs, "state": state})
    expected, _ = run(**{**inputs, "state": state.float()})
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


LAYOUTS = {
    "dstate first": lambda: randn(2, 4, 6, 5).mT,
    "slices": lambda: randn(2, 8, 10, 12)[:, ::2, 3:8, ::2],
    "batch last": lambda: randn(4, 5, 6, 2).permute(3, 0, 1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    packed = randn(2, 60, seed=11)
    inputs = step_inputs(
        x=packed[:, :20].view(2, 4, 5),
        z=packed[:, 20:40].view(2, 4, 5),
        B=randn(2, 6, 2).mT,
        C=randn(6).expand(2, 2, 6),
    )
    out, after = naive_step(**inputs)
    state = LAYOUTS[layout]().copy_(inputs["state"])
    got = selective_state_update(**{**inputs, "state": state})
    torch.testing.assert_close(got, out, **exact)
    torch.testing.assert_close(state, after, **exact)


def test_one_head_without_its_dimension(backend: str) -> None:
    whole = step_inputs()
    with_head = {
        name: t if t is None or isinstance(t, bool) else (t[:, :1] if t.shape[0] == 2 else t[:1])
        for name, t in whole.items()
    }
    out, after = naive_step(**with_head)
    bare = {
        name: t if isinstance(t, bool) else (t[:, 0] if t.shape[0] == 2 else t[0])
        for name, t in with_head.items()
    }
    state = bare.pop("state").clone()
    got = selective_state_update(state, **bare)
    assert got.shape == (2, 5)
    torch.testing.assert_close(got, out[:, 0], **exact)
    torch.testing.assert_close(state, after[:, 0], **exact)


def test_allocates_no_more_than_one_state() -> None:
    state = torch.zeros(2, 4, 5, 600)
    x, B = torch.ones(2, 4, 5), torch.ones(2, 2, 600)
    A = -torch.ones(4, 5, 600)
    assert largest_tensor(lambda: selective_state_update(state, x, x, A, B, B)) == state.numel()


def test_golden_decode_steps_of_the_mixer(backend: str) -> None:
    golden = on_device(load_file(DATA / "mamba_mixer.safetensors"))
    weight = {k.removeprefix("weight."): v for k, v in golden.items() if k.startswith("weight.")}
    heads, headdim, groups, dstate = 4, 80, 2, 32
    conv_state, ssm_state = golden["conv_state"].clone(), golden["ssm_state"].clone()
    A = (-weight["A_log"].exp())[:, None, None].expand(heads, headdim, dstate)
    D, dt_bias = (weight[name][:, None].expand(heads, headdim) for name in ("D", "dt_bias"))
    outs = []
    for u in golden["step_input"].unbind(1):
        z, xbc, dt = (u @ weight["in_proj.weight"].T).split([320, 448, 4], dim=-1)
        taps, bias = weight["conv1d.weight"].squeeze(1), weight["conv1d.bias"]
        with use_backend("reference"):
            xbc = causal_conv1d_update(xbc, conv_state, taps, bias, "silu")
        x, B, C = xbc.split([320, 64, 64], dim=-1)
        y = selective_state_update(
            ssm_state,
            x.view(-1, heads, headdim),
            dt[:, :, None].expand(-1, heads, headdim),
            A,
            B.view(-1, groups, dstate),
            C.view(-1, groups, dstate),
            D,
            dt_bias=dt_bias,
            dt_softplus=True,
        )
        y = rmsnorm_fn(y.flatten(1), weight["norm.weight"], None, z, 1e-5, 160, False)
        outs.append(y @ weight["out_proj.weight"].T)
    torch.testing.assert_close(torch.stack(outs, 1), golden["step_output"], atol=2e-5, rtol=0)
    torch.testing.assert_close(ssm_state, golden["ssm_state_after_steps"], atol=2e-5, rtol=0)


def test_is_for_inference(backend: str) -> None:
    inputs = step_inputs()
    inputs["x"].requires_grad_()
    out, state = run(**inputs)
    assert not out.requires_grad
    assert not state.requires_grad


def test_parameters_can_be_read_by_name() -> None:
    names = "state x dt A B C D z dt_bias dt_softplus state_batch_indices"
    assert list(inspect.signature(selective_state_update).parameters) == names.split()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("variant", ["full", "per head", "rows"])
def test_compiles_in_one_graph(variant: str) -> None:
    inputs = step_inputs(**VARIANTS[variant])
    start = inputs.pop("state")
    expected, after = run(start, **inputs)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        state = start.clone()
        step = torch.compile(selective_state_update, fullgraph=True, backend=compiler)
        torch.testing.assert_close(step(state, **inputs), expected, **exact)
        torch.testing.assert_close(state, after, **exact)


def test_meta_tensors() -> None:
    inputs = step_inputs(**VARIANTS["rows"])
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    out = selective_state_update(**meta)
    assert (out.shape, out.dtype, out.device.type) == ((2, 4, 5), torch.float64, "meta")
