"""rmsnorm_fn, layernorm_fn and rms_norm against a float64 row loop, torch and a recorded mixer."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.contract import (
    check_contract,
    on_device,
)
from tests.ops.common import DATA, DTYPES, randn
from tests.ops.rmsnorm.common import BLOCK, naive_norm, norm_inputs
from tvkernels.rmsnorm import layernorm_fn, rms_norm, rmsnorm_fn

VARIANTS = {
    "model": {"bias": None},
    "gate after": {"norm_before_gate": True},
    "one group": {"group_size": None},
    "no gate": {"z": None, "bias": None},
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_rms_norm", [True, False], ids=["rms", "layer"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, is_rms_norm: bool, dtype: torch.dtype) -> None:
    inputs = norm_inputs(**VARIANTS[variant], is_rms_norm=is_rms_norm)
    wrt = [name for name in ("x", "weight", "bias", "z") if inputs[name] is not None]
    check_contract(layernorm_fn, naive_norm, inputs, dtype=dtype, wrt=wrt)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_rms_norm", [True, False], ids=["rms", "layer"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract_of_the_reference_by_blocks(
    variant: str, is_rms_norm: bool, dtype: torch.dtype
) -> None:
    with patch(BLOCK, 60):
        test_contract(variant, is_rms_norm, dtype)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("size", [1, 2, 3, 20, 37, 64, 1280])
def test_every_group_size(size: int) -> None:
    """Powers of two, just above them, one channel, and the model's."""
    x, z = randn(3, 2 * size, seed=1), randn(3, 2 * size, seed=2)
    weight, bias = randn(2 * size, seed=3), randn(2 * size, seed=4)
    inputs = norm_inputs(x=x, z=z, weight=weight, bias=bias, group_size=size)
    check_contract(layernorm_fn, naive_norm, inputs, wrt=("x", "weight", "bias", "z"))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("gate_first", [True, False])
def test_many_rows_without_eps(gate_first: bool) -> None:
    """More rows than one program sums for the weight, and no eps to hide a row that is not there."""
    x, z = randn(37, 24, seed=1), randn(37, 24, seed=2)
    inputs = norm_inputs(x=x, z=z, eps=0.0, norm_before_gate=not gate_first)
    check_contract(layernorm_fn, naive_norm, inputs, wrt=("x", "weight", "bias", "z"))


def test_against_torch(backend: str) -> None:
    x, weight, bias = randn(7, 24).float(), randn(24, seed=1).float(), randn(24, seed=2).float()
    for block in (1 << 19, 60):
        with patch(BLOCK, block):
            rms, layer = rmsnorm_fn(x, weight, None), layernorm_fn(x, weight, bias)
        torch.testing.assert_close(rms, F.rms_norm(x, (24,), weight, 1e-6))
        torch.testing.assert_close(layer, F.layer_norm(x, (24,), weight, bias, 1e-6))


LAYOUTS = {
    "slice": lambda: (randn(2, 5, 60)[..., 10:34], randn(2, 5, 60, seed=1)[..., 36:]),
    "transposed": lambda: (randn(2, 24, 5).mT, randn(5, 2, 24, seed=1).transpose(0, 1)),
    "expanded": lambda: (randn(24).expand(2, 5, 24), randn(2, 5, 1, seed=1).expand(2, 5, 24)),
    "strided": lambda: (randn(2, 5, 48)[..., ::2], randn(2, 5, 24, seed=1)),
    "one row each": lambda: (randn(7, 1, 60)[..., 36:], randn(7, 60, seed=1)[:, None, 36:]),
    "four dimensions": lambda: (randn(3, 2, 2, 24).transpose(0, 1), randn(2, 3, 4, 24)[:, :, ::2]),
    "vector": lambda: (randn(24), randn(24, seed=1)),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("block", [1 << 19, 60], ids=["whole", "blocks"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, block: int) -> None:
    x, z = LAYOUTS[layout]()
    with patch(BLOCK, block):
        for wrt in ((), ("x", "z", "weight")):
            check_contract(layernorm_fn, naive_norm, norm_inputs(x=x, z=z), wrt=wrt)
        assert layernorm_fn(**norm_inputs(x=x, z=z)).is_contiguous()


def test_weight_keeps_its_own_dtype_until_the_last_rounding(backend: str) -> None:
    x, weight = randn(64, 16).bfloat16(), (1 + 1e-3 * randn(16, seed=1)).float()
    truth = naive_norm(x.double(), weight.double(), None, is_rms_norm=True)
    assert torch.equal(rmsnorm_fn(x, weight, None), truth.bfloat16())
    assert not torch.equal(rmsnorm_fn(x, weight.bfloat16(), None), truth.bfloat16())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_with_residual(dtype: torch.dtype) -> None:
    def oracle(
        x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return naive_norm(total, weight, None, eps=eps, is_rms_norm=True), total

    inputs = {"x": randn(3, 4, 24), "weight": randn(24, seed=1), "eps": 1e-5}
    inputs["residual"] = randn(3, 4, 24, seed=2)
    check_contract(rms_norm, oracle, inputs, dtype=dtype, wrt=("x", "weight", "residual"))


def test_golden_gated_norm_of_the_mixer(backend: str) -> None:
    golden = on_device(load_file(DATA / "mamba_mixer.safetensors"))
    out = rmsnorm_fn(
        golden["scan_output_before_gate"].flatten(-2),
        golden["weight.norm.weight"],
        None,
        z=golden["gate_z"],
        eps=1e-5,
        group_size=160,
        norm_before_gate=False,
    )
    torch.testing.assert_close(out, golden["gated_norm_output"], atol=2e-5, rtol=0)


class LargestFloat32(TorchDispatchMode):
    """Inside the block, `numel` is the largest number of elements of a float32 result."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.numel = max(self.numel, result.numel())
        return result


def test_no_float32_copy_of_a_16_bit_input() -> None:
    x, z = randn(512, 64).bfloat16(), randn(512, 64, seed=1).bfloat16()
    with patch(BLOCK, 1024), LargestFloat32() as seen:
        leaf = x.requires_grad_()
        rmsnorm_fn(leaf, torch.ones(64, requires_grad=True), None, z).sum().backward()
    assert 0 < seen.numel <= 1024
