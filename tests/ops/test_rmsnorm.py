"""rmsnorm_fn, layernorm_fn, rms_norm against a float64 row loop, torch, a golden, their laws."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    check_capture,
    check_contract,
    compilers,
    device,
    every_config,
    on_device,
)
from tests.interpreter import lazily, poisoned_empty
from tests.ops.common import DATA, DTYPES, law, randn
from tvkernels import use_backend
from tvkernels.rmsnorm import layernorm_fn, rms_norm, rmsnorm_fn
from tvkernels.rmsnorm.op import _gated_bwd, _gated_fwd, _residual_bwd, _residual_fwd

BLOCK = "tvkernels.rmsnorm.reference.BLOCK_ELEMENTS"


def naive_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    z: torch.Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> torch.Tensor:
    """One row and one group at a time, sums written out, one rounding at the end."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dim = x.shape[-1]
    size = group_size or dim
    rows = []
    for r in range(x.numel() // dim):
        v = x.reshape(-1, dim)[r].to(wide)
        gate = None
        if z is not None:
            zr = z.reshape(-1, dim)[r].to(wide)
            gate = zr / (1 + torch.exp(-zr))
        if gate is not None and not norm_before_gate:
            v = v * gate
        groups = []
        for g in range(0, dim, size):
            part = v[g : g + size]
            if not is_rms_norm:
                part = part - part.sum() / size
            groups.append(part / torch.sqrt((part * part).sum() / size + eps))
        y = torch.cat(groups) * weight.to(wide)
        y = y if bias is None else y + bias.to(wide)
        rows.append(y * gate if gate is not None and norm_before_gate else y)
    return torch.stack(rows).reshape(x.shape).to(x.dtype)


def norm_inputs(**changes: Any) -> dict[str, Any]:
    inputs = {
        "x": randn(2, 5, 24, seed=1),
        "weight": randn(24, seed=2),
        "bias": randn(24, seed=3),
        "z": randn(2, 5, 24, seed=4),
        "eps": 1e-5,
        "group_size": 8,
        "norm_before_gate": False,
    }
    return {**inputs, **changes}


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


def test_rmsnorm_fn_is_layernorm_fn_without_the_mean(backend: str) -> None:
    inputs = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in norm_inputs().items()}
    assert torch.equal(rmsnorm_fn(**inputs), layernorm_fn(**inputs, is_rms_norm=True))
    inputs["x"] = inputs["x"] + 3.0
    assert not torch.allclose(rmsnorm_fn(**inputs), layernorm_fn(**inputs), atol=0.1)


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


def test_rms_norm_norms_the_rounded_sum(backend: str) -> None:
    x, residual = randn(8, 16).bfloat16(), 100 * randn(8, 16, seed=1).bfloat16()
    weight = torch.ones(16, device=device())
    out, new_residual = rms_norm(x, weight, 1e-5, residual)
    assert torch.equal(new_residual, (x.double() + residual.double()).bfloat16())
    assert torch.equal(out, rms_norm(new_residual, weight, 1e-5))
    truth = naive_norm(new_residual.double(), weight, None, eps=1e-5, is_rms_norm=True)
    assert torch.equal(out, truth.bfloat16())


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


@law
@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 5),
    size=st.integers(1, 7),
    gate_first=st.booleans(),
    block=st.integers(1, 200),
)
def test_law_groups_are_independent(
    backend: str, rows: int, groups: int, size: int, gate_first: bool, block: int
) -> None:
    x, z = randn(rows, groups * size), randn(rows, groups * size, seed=1)
    weight, bias = randn(groups * size, seed=2), randn(groups * size, seed=3)
    with patch(BLOCK, block):
        whole = layernorm_fn(x, weight, bias, z, 1e-5, size, not gate_first)
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        alone = naive_norm(
            x[:, part], weight[part], bias[part], z[:, part], 1e-5, None, not gate_first
        )
        torch.testing.assert_close(whole[:, part], alone, atol=1e-9, rtol=1e-9)


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


def test_second_order_gradients_say_that_they_are_absent(backend: str) -> None:
    x = randn(40, 16).requires_grad_()
    with patch(BLOCK, 64):
        y = rmsnorm_fn(x, torch.ones(16, device=device()), None)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.usefixtures("backend")
def test_compiles_in_one_graph() -> None:
    def step(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        normed, residual = rms_norm(x, weight, 1e-5, z)
        gated = rmsnorm_fn(normed, weight, None, z, 1e-5, 8, False)
        return layernorm_fn(gated + residual, weight, weight)

    tensors = randn(6, 16), randn(16, seed=1), randn(6, 16, seed=2)
    args = [t.float().requires_grad_() for t in tensors]
    weights = randn(6, 16, seed=3).float()
    with patch(BLOCK, 32):
        expected = step(*args)
    want = torch.autograd.grad((expected * weights).sum(), args)
    for compiler in compilers("eager"):
        torch._dynamo.reset()
        with patch(BLOCK, 32):
            got = torch.compile(step, fullgraph=True, backend=compiler)(*args)
        torch.testing.assert_close(got, expected)
        for a, b in zip(torch.autograd.grad((got * weights).sum(), args), want):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


KERNELS = [f"tvkernels.rmsnorm.kernel:norm_{way}_kernel" for way in ("forward", "backward")]


@pytest.mark.triton
@pytest.mark.parametrize("config", every_config(*KERNELS), ids=str)
def test_every_configuration(config: Any) -> None:
    from tvkernels.core.tune import forced

    with use_backend("triton"), poisoned_empty(), forced(config):
        test_contract("model", True, torch.float32)
        test_every_group_size(37)
        test_rms_norm_with_residual(torch.bfloat16)


def model_tensors(rows: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """x, z as a slice of a wider product, weight, and a cotangent."""
    x, wide, dout = (randn(rows, n, seed=n).to(dtype) for n in (dim, 2 * dim + 16, dim + 1))
    return [x, wide[:, 16 : 16 + dim], randn(dim).to(dtype), dout[:, :dim]]


def every_result(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Outputs and gradients of both norms on the same numbers at each call."""
    x, z, weight, dout = model_tensors(40, 96, dtype)
    leaves = [t.detach().requires_grad_() for t in (x, weight, z)]
    out = layernorm_fn(leaves[0], leaves[1], leaves[1], leaves[2], 1e-5, 48, False)
    normed, total = rms_norm(leaves[0], leaves[1], 1e-5, leaves[2])
    grads = torch.autograd.grad((out, normed, total), leaves, (dout, dout, dout))
    return (out, normed, total, *grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(backend: str, dtype: torch.dtype) -> None:
    assert all(torch.equal(a, b) for a, b in zip(every_result(dtype), every_result(dtype)))


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    with use_backend("triton"):
        x, z, weight, _ = model_tensors(40, 96, torch.bfloat16)
        leaves = [t.detach().requires_grad_() for t in (x, weight, z)]

        def step() -> tuple[torch.Tensor, ...]:
            out = layernorm_fn(leaves[0], leaves[1], leaves[1], leaves[2], 1e-5, 48, False)
            normed, total = rms_norm(leaves[0], leaves[1], 1e-5, leaves[2])
            return (
                out,
                normed,
                total,
                *torch.autograd.grad((out, normed, total), leaves, (x,) * 3),
            )

        check_capture(step)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_operators_are_sound() -> None:
    with use_backend("triton"):
        x, z, weight, dout = model_tensors(5, 24, torch.float32)
        form = (1e-5, 8, False, True)
        for gate, bias in ((z, None), (None, weight), (z, weight)):
            torch.library.opcheck(_gated_fwd.op, (x, weight, bias, gate, *form))
            torch.library.opcheck(_gated_bwd.op, (dout, x, weight, bias, gate, *form))
        torch.library.opcheck(_residual_fwd.op, (x, weight, z, 1e-5))
        torch.library.opcheck(_residual_bwd.op, (dout, z, x, weight, 1e-5))


@pytest.mark.parametrize("which", ["x", "z", "dout"])
def test_offsets_past_32_bits(backend: str, which: str) -> None:
    """The stride itself fits 32 bits, so that only the product with the row does not."""
    dim, far = 24, 3 * 2**29
    tensors = {n: randn(3, dim, seed=i).bfloat16() for i, n in enumerate(("x", "z", "dout"))}
    weight = randn(dim, seed=4).bfloat16().requires_grad_()

    def run(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        x, z = (given[n].detach().requires_grad_() for n in ("x", "z"))
        gated = rmsnorm_fn(x, weight, None, z, 1e-5, 8, False)
        normed, total = rms_norm(x, weight, 1e-5, z)
        outputs = (gated, normed, total)
        grads = torch.autograd.grad(outputs, (x, z, weight), (given["dout"],) * 3)
        return [*outputs, *grads]

    distant = lazily((3, dim), (far, 1), torch.bfloat16, device()).copy_(tensors[which])
    for got, near in zip(run({**tensors, which: distant}), run(tensors)):
        assert_alike(got, near, rounding=COMPILED)


def test_no_rows(backend: str) -> None:
    x = torch.zeros(0, 3, 16, device=device(), requires_grad=True)
    weight = torch.ones(16, device=device(), requires_grad=True)
    out = rmsnorm_fn(x, weight, None, x.detach(), group_size=4)
    assert out.shape == x.shape
    out.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_meta_tensors() -> None:
    x = torch.empty(2, 600, 1024, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(1024, device="meta")
    out, residual = rms_norm(x, weight, 1e-5, x)
    for y in (out, residual, rmsnorm_fn(x, weight, None, x), layernorm_fn(x, weight, weight, x)):
        assert (y.shape, y.dtype, y.device.type) == (x.shape, torch.bfloat16, "meta")


X, W = torch.zeros(2, 8), torch.zeros(8)
ERRORS = [
    (lambda: rmsnorm_fn(torch.zeros(()), W, None), r"x must be \(..., dim\), got a scalar"),
    (lambda: rmsnorm_fn(X.int(), W, None), "rmsnorm_fn: x must be of dtype .*, got int32"),
    (
        lambda: layernorm_fn(X, W[:4], None),
        r"layernorm_fn: weight must be \(dim,\) = \(8\), got shape",
    ),
    (lambda: rms_norm(X, W.int(), 1e-5), "rms_norm: weight must be of dtype .*, got int32"),
    (lambda: rmsnorm_fn(X, W, X), r"rmsnorm_fn: bias must be \(dim,\) = \(8\), got shape \(2, 8\)"),
    (lambda: rmsnorm_fn(X, W, W.int()), "rmsnorm_fn: bias must be of dtype .*, got int32"),
    (lambda: rmsnorm_fn(X, W, None, X[:1]), r"z must be the shape of x = \(2, 8\), got shape"),
    (lambda: rmsnorm_fn(X, W, None, X.int()), "rmsnorm_fn: z must be of dtype .*, got int32"),
    (lambda: rmsnorm_fn(X, W.to("meta"), None), r"weight must lie on the device of x \(cpu\)"),
    (lambda: rmsnorm_fn(X, W, None, eps=-1e-5), "rmsnorm_fn: eps must be at least 0, got -1e-05"),
    (lambda: rmsnorm_fn(X, W, None, group_size=3), "group_size must divide dim = 8, got 3"),
    (lambda: rmsnorm_fn(X, W, None, group_size=0), "group_size must divide dim = 8, got 0"),
    (lambda: rms_norm(X, W, 1e-5, X[0]), r"residual must be the shape of x = \(2, 8\)"),
    (lambda: rms_norm(X, W, 1e-5, X.half()), "residual must be of dtype float32, got float16"),
    (lambda: rms_norm(X, W, 1e-5, X.to("meta")), r"residual must lie on the device of x \(cpu\)"),
]


@pytest.mark.parametrize(("call", "sentence"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
