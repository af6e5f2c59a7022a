"""The equivalence contract that every op is held to.

Tolerance is a rule, not a table: per tensor, the relative L2 error and the max error over the
largest true value may be at most twice what a plain PyTorch form loses at the same dtype against
float64, plus a floor of 1e-6 (float32, float64) or 1e-3 (16 bit).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

from tests.interpreter import INTERPRETED
from tvkernels.core.backend import forced_backend
from tvkernels.core.table import KERNELS

FLOORS = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}

Tensors = Mapping[str, Any]

# functions that tvkernels exports besides its ops: for choosing a backend, and for integrations
NOT_OPS = {"explain", "use_backend", "patch_transformers", "unpatch_transformers"}
NOT_OPS |= {"provide", "providers", "kernel_mapping"}

# whether kernels run compiled, and whether they run at all
COMPILED = torch.cuda.is_available() and not INTERPRETED
TRITON = INTERPRETED or COMPILED


def device() -> torch.device:
    """Where tensors must lie for the backend in force: on the GPU for compiled Triton."""
    compiled = any(forced_backend(kernel) == "triton" for kernel in KERNELS) and not INTERPRETED
    return torch.device("cuda" if compiled else "cpu")


def on_device(values: Any) -> Any:
    """The tensors in `values` (nested as they are) on `device()`, strides and sharing kept."""

    def move(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or x.device == device():
            return x
        return _cast_keeping_strides(x, x.dtype, device())

    return tree_map(move, values)


def errors(got: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """(relative L2, max abs error over max |truth|), both in float64."""
    got, truth = got.detach().double(), truth.detach().double()
    difference = got - truth
    scale = truth.norm().clamp_min(1e-30)
    peak = truth.abs().max().clamp_min(1e-30) if truth.numel() else torch.tensor(1.0)
    worst = difference.abs().max() if truth.numel() else torch.tensor(0.0)
    return float(difference.norm() / scale), float(worst / peak)


def assert_close_by_rule(
    got: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, name: str = "output"
) -> None:
    """`got` loses at most twice what `plain` (same dtype) loses against `truth` (float64)."""
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)} != {tuple(truth.shape)}"
    assert bool(torch.isfinite(got).all()), f"{name}: not finite"
    floor = FLOORS[got.dtype]
    for kind, ours, theirs in zip(("L2", "max"), errors(got, truth), errors(plain, truth)):
        bound = 2 * theirs + floor
        assert ours <= bound, (
            f"{name}: {kind} error {ours:.3g} above {bound:.3g} (plain {theirs:.3g})"
        )


def every_config(*kernels: str) -> list[Any]:
    """Each configuration of the tuned kernels ("tvkernels.op.kernel:name"), to force in turn.

    For `@pytest.mark.parametrize("config", every_config(...), ids=str)`; empty where the run has no
    Triton. Of every target in the interpreter; on a GPU its own, as another's need not fit.
    """
    if not TRITON:
        return []
    from tvkernels.core.tune import _target

    configs = []
    for kernel in kernels:
        module, name = kernel.split(":")
        tuned = getattr(importlib.import_module(module), name)
        configs += tuned.configs(_target()) if COMPILED else tuned.shipped()
    return configs


def compilers(*more: str) -> list[str]:
    """torch.compile's backends that an op is held to now: inductor where its kernels are compiled.

    In the interpreter, and for the reference, which is PyTorch alone, it would show nothing.
    """
    return [*more, "aot_eager", *(["inductor"] if device().type == "cuda" else [])]


def assert_alike(got: torch.Tensor, want: torch.Tensor, *, rounding: bool = False) -> None:
    """Assert equal bits, or with `rounding` equality up to the order of summation: Triton compiles
    other code for other strides, and inductor fuses the operations between kernels."""
    if rounding:
        torch.testing.assert_close(got, want)
    else:
        assert torch.equal(got, want)


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    """A function's result as a tuple of tensors; empty where there is none."""
    if result is None:
        return ()
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def cast(inputs: Tensors, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs with every floating tensor (also of a pair) in `dtype`, detached; strides kept (stride
    0 too)."""

    def one(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return _cast_keeping_strides(value.detach(), dtype, value.device)
        return value

    return {name: tree_map(one, value) for name, value in inputs.items()}


def run_with_gradients(
    fn: Callable[..., Any],
    inputs: Tensors,
    cotangents: Sequence[torch.Tensor] | None,
    wrt: Sequence[str],
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Outputs of `fn(**inputs)` and the gradients of `wrt` for `cotangents` on every output."""
    # detached, not cloned: a clone of a slice or of an expanded tensor has other strides
    leaves = {name: inputs[name].detach().requires_grad_() for name in wrt}
    outputs = as_tuple(fn(**{**inputs, **leaves}))
    if not wrt or cotangents is None:
        return outputs, {}
    total = sum(
        (out.double() * weight.double()).sum()
        for out, weight in zip(outputs, cotangents)
        if out.requires_grad
    )
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return outputs, {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads)
    }


def check_contract(
    fn: Callable[..., Any],
    oracle: Callable[..., Any],
    inputs: Tensors,
    *,
    dtype: torch.dtype = torch.float32,
    wrt: Sequence[str] = (),
    seed: int = 0,
    plain: Callable[..., Any] | None = None,
) -> None:
    """Values, gradients (random cotangents on every output), dtypes, shapes, inputs untouched.

    `inputs` are keyword arguments; floating tensors are cast to `dtype` for `fn` and for the plain
    run of `oracle`, and the cast values to float64 for the truth, so all three see the same numbers.
    `plain` replaces the plain run, where `oracle` computes wider than plain code at `dtype` would.
    """
    ours = cast(on_device(inputs), dtype)
    before = {k: v.clone() for k, v in ours.items() if isinstance(v, torch.Tensor)}
    exact = cast(ours, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        outputs = as_tuple(oracle(**ours))
    # rounded to the output's dtype, so that the float64 run gets the same cotangents
    cotangents = [
        torch.randn(out.shape, generator=generator, dtype=torch.float64).to(device(), out.dtype)
        for out in outputs
    ]
    got, got_grads = run_with_gradients(fn, ours, cotangents, wrt)
    rounded, rounded_grads = run_with_gradients(plain or oracle, ours, cotangents, wrt)
    truth, true_grads = run_with_gradients(oracle, exact, cotangents, wrt)
    for name, tensor in before.items():
        assert torch.equal(ours[name], tensor), f"{name} was written to"
    assert len(got) == len(rounded) == len(truth)
    for i, (g, p, t) in enumerate(zip(got, rounded, truth)):
        assert g.dtype == p.dtype, f"output {i}: dtype {g.dtype}, oracle {p.dtype}"
        if g.is_floating_point():
            assert_close_by_rule(g, p, t, f"output {i}")
        else:
            assert torch.equal(g, t.to(g.dtype)), f"output {i}: integers differ"
    for name in wrt:
        assert_close_by_rule(got_grads[name], rounded_grads[name], true_grads[name], f"d{name}")


def check_capture(fn: Callable[[], Any]) -> None:
    """On a GPU: `fn` can be captured in a CUDA graph, whose replay gives the same bits.

    A synchronisation with the host makes the capture fail, so this shows its absence too; so does
    a copy from the host, which is why `fn` makes no inputs.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # tunes and compiles, which a capture may not. Detached: a graph of autograd that lives on
        # holds the leaves' accumulators to the stream that made them
        expected = [x.detach().clone() for x in as_tuple(fn())]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        captured = [x.detach() for x in as_tuple(fn())]
    for x in captured:
        x.fill_(7)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, expected):
        assert torch.equal(got, want)


def _cast_keeping_strides(x: torch.Tensor, dtype: torch.dtype, where: torch.device) -> torch.Tensor:
    if 0 in x.stride() and x.numel():
        base = x[tuple(slice(0, 1) if s == 0 else slice(None) for s in x.stride())]
        return base.to(where, dtype).expand(x.shape)
    out = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=where)
    return out.copy_(x)
