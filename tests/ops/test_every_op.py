"""What holds for every op alike: autocast lowers none of them, and an empty batch is a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

import tvkernels
import tvkernels.reference
from tests.contract import NOT_OPS, as_tuple, on_device

Tensors = dict[str, Any]

# tensors that an op of inference writes in place; it has no gradient
STATES = {
    "causal_conv1d_update": ("conv_state",),
    "mamba2_decode_step": ("conv_state", "ssm_state"),
    "prefix_attention": (),
    "replay_flush": ("state", "written"),
    "replay_state_update": ("state", "pending_x", "pending_dt", "pending_B", "written"),
    "selective_state_update": ("state",),
}
MATRICES = ("mamba_chunk_scan_combined", "gated_cross_attention")


def scan(batch: int, randn: Callable[..., torch.Tensor]) -> Tensors:
    return {
        "x": randn(batch, 40, 4, 6), "dt": randn(batch, 40, 4), "A": -randn(4).square() - 1,
        "B": randn(batch, 40, 2, 5), "C": randn(batch, 40, 2, 5), "chunk_size": 16, "D": randn(4),
        "z": randn(batch, 40, 4, 6), "dt_softplus": True, "return_final_states": True,
        **({"cu_seqlens": torch.tensor([0, 17, 40]), "return_varlen_states": True} if batch else {}),
    }  # fmt: skip


def step(batch: int, randn: Callable[..., torch.Tensor]) -> Tensors:
    return {
        "state": randn(3, 4, 6, 5), "x": randn(batch, 4, 6), "dt": randn(batch, 4, 6),
        "A": -randn(4, 6, 5).square(), "B": randn(batch, 2, 5), "C": randn(batch, 2, 5),
        "dt_softplus": True, "state_batch_indices": torch.arange(batch),
    }  # fmt: skip


def held(batch: int, randn: Callable[..., torch.Tensor], rows: int = 3) -> Tensors:
    """Of each of `rows` sequences at most two of three possible tokens are pending."""
    return {
        "state": randn(rows, 4, 6, 5), "pending_x": randn(rows, 6, 4, 6),
        "pending_dt": randn(rows, 6, 4, 2), "pending_B": randn(rows, 6, 2, 5),
        "written": torch.zeros(rows, 4, dtype=torch.int32),
        "cache_seqlens": torch.arange(batch) % 3, "state_batch_indices": torch.arange(batch),
    }  # fmt: skip


def replay(batch: int, randn: Callable[..., torch.Tensor], rows: int = 3) -> Tensors:
    return {
        **held(batch, randn, rows), "x": randn(batch, 2, 4, 6), "dt": randn(batch, 2, 4),
        "A": -randn(4).square(), "B": randn(batch, 2, 2, 5), "C": randn(batch, 2, 2, 5),
        "D": randn(4), "z": randn(batch, 2, 4, 6), "dt_softplus": True,
    }  # fmt: skip


def decode_step(batch: int, randn: Callable[..., torch.Tensor]) -> Tensors:
    return {
        "zxbcdt": randn(batch, 2 * 24 + 2 * 10 + 4), "conv_state": randn(3, 44, 4),
        "ssm_state": randn(3, 4, 6, 5), "cache_seqlens": torch.arange(batch),
        "conv1d_weight": randn(44, 4), "conv1d_bias": randn(44), "dt_bias": randn(4),
        "A_log": randn(4), "D": randn(4), "state_batch_indices": torch.arange(batch),
    }  # fmt: skip


def mixer(batch: int, randn: Callable[..., torch.Tensor]) -> Tensors:
    return {
        "zxbcdt": randn(batch, 40, 2 * 3 + 2 * 24 + 2 * 10 + 4), "conv1d_weight": randn(44, 4),
        "conv1d_bias": randn(44), "dt_bias": randn(4), "A": -randn(4).square() - 1,
        "D": randn(4, 6), "chunk_size": 16, "rmsnorm_weight": randn(24), "ngroups": 2,
    }  # fmt: skip


CASES: dict[str, Callable[[int, Callable[..., torch.Tensor]], Tensors]] = {
    "attention_topk": lambda b, randn: {
        "q": randn(b, 4, 8), "k": randn(b, 50, 2, 8), "keep": 5, "span": (3, 40),
    },
    "attention_topk_hidden": lambda b, randn: {
        "q": randn(b, 4, 8), "hidden": randn(b, 50, 12), "k_weight": randn(16, 12),
        "norm_weight": randn(12), "k_bias": randn(16), "rope": (randn(50, 8), randn(50, 8)),
        "keep": 5, "span": (3, 40),
    },
    "causal_conv1d_fn": lambda b, randn: {
        "x": randn(b, 6, 40), "weight": randn(6, 4), "bias": randn(6), "activation": "silu",
    },
    "causal_conv1d_update": lambda b, randn: {
        "x": randn(b, 6), "conv_state": randn(3, 6, 4), "weight": randn(6, 4),
        "activation": "silu", "conv_state_indices": torch.arange(b),
    },
    "causal_conv1d_varlen_states": lambda b, randn: {
        "x": randn(40 * b, 6), "cu_seqlens": torch.arange(b + 1) * 40, "state_len": 3,
    },
    "compact": lambda b, randn: {
        "x": randn(b, 40, 6), "dropped": torch.tensor([[0, 3, 4, 39]]).repeat(b, 1),
        "positions": torch.arange(40).repeat(b, 1), "return_dropped": True,
    },
    "gated_cross_attention": lambda b, randn: {
        "text": randn(b, 7, 20), "q": randn(b, 7, 4, 8), "k": randn(b, 45, 2, 8),
        "v": randn(b, 45, 2, 8), "alpha": randn(1), "out_proj": randn(20, 32),
    },
    "layernorm_fn": lambda b, randn: {
        "x": randn(b, 40, 6), "weight": randn(6), "bias": randn(6), "z": randn(b, 40, 6),
    },
    "mamba2_decode_step": decode_step,
    "mamba_chunk_scan_combined": scan,
    "mamba_split_conv1d_scan_combined": mixer,
    "prefix_attention": lambda b, randn: {
        "q": randn(b, 3, 4, 8), "key": randn(b, 20, 2, 8), "value": randn(b, 20, 2, 8),
        "lengths": torch.tensor([20, 7, 3])[:b], "prefix": (randn(1, 40, 2, 8), randn(1, 40, 2, 8)),
    },
    "relu2": lambda b, randn: {"x": randn(b, 40, 6)},
    "replay_flush": held,
    "replay_state_update": replay,
    "rms_norm": lambda b, randn: {
        "x": randn(b, 40, 6), "weight": randn(6), "eps": 1e-5, "residual": randn(b, 40, 6),
    },
    "rmsnorm_fn": lambda b, randn: {
        "x": randn(b, 40, 6), "weight": randn(6), "bias": None, "z": randn(b, 40, 6),
    },
    "selective_state_update": step,
    "tome_merge": lambda b, randn: {"x": randn(b, 40, 32), "num_tokens": 16},
}  # fmt: skip


def inputs_of(op: str, batch: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    return CASES[op](batch, lambda *shape: torch.randn(*shape, generator=generator))


def run(op: str, inputs: Tensors, *, call: Any = None) -> list[torch.Tensor]:
    """Results, tensors written in place, and gradients of every input that has one."""
    copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    floats = {
        k: v for k, v in copies.items() if isinstance(v, torch.Tensor) and v.is_floating_point()
    }
    if op not in STATES:
        floats = {k: v.requires_grad_() for k, v in floats.items()}
    out = list(as_tuple((call or getattr(tvkernels, op))(**copies)))
    live = [t for t in out if t.requires_grad]
    if live:
        out += torch.autograd.grad(sum(t.cos().sum() for t in live), list(floats.values()))
    return out + [copies[k] for k in STATES.get(op, ())]


# calls with further results, or with nothing to do
MORE: dict[str, Tensors] = {
    "causal_conv1d_fn": {"initial_states": torch.ones(1, 6, 3), "return_final_states": True},
    "gated_cross_attention": {"k": torch.ones(1, 0, 2, 8), "v": torch.ones(1, 0, 2, 8)},
    "mamba_split_conv1d_scan_combined": {"rmsnorm_weight": None, "return_final_states": True},
    "tome_merge": {"num_tokens": 40},
}
# results that backward reads: autograd refuses to go back after they are modified
READ_BY_BACKWARD = {"rms_norm": 1}


def channel_last_slice(x: torch.Tensor) -> torch.Tensor:
    if x.ndim < 2:
        return x.clone()
    return torch.nn.functional.pad(x.mT, (1, 2))[..., 1:-2].mT


def run_modified(
    op: str, inputs: Tensors, modify: Callable[[torch.Tensor], torch.Tensor], skip: int | None
) -> list[torch.Tensor]:
    """Floating results, all but number `skip` replaced by `modify` of them, the gradients, and the
    inputs afterwards."""
    given = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    floats = [v for v in given.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    leaves = [] if op in STATES else [v.requires_grad_() for v in floats]
    out = [t for t in as_tuple(getattr(tvkernels, op)(**given)) if t.is_floating_point()]
    out = [t if i == skip else modify(t) for i, t in enumerate(out)]
    live = [t for t in out if t.requires_grad]
    if live:
        out += torch.autograd.grad(sum(t.cos().sum() for t in live), leaves, materialize_grads=True)
    return out + floats


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", [torch.clone, channel_last_slice])
@pytest.mark.parametrize("op", CASES)
def test_a_result_may_be_modified_in_place(
    op: str, layout: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Gradients are right and no input changes, or autograd says that backward needs the result."""
    skip, plain = READ_BY_BACKWARD.get(op), inputs_of(op)
    for inputs in [plain, {**plain, **MORE[op]}] if op in MORE else [plain]:
        results = []
        for modify in (lambda t: t.mul_(2).add_(1), lambda t: 2 * t + 1):
            tensors = tree_map_only(torch.Tensor, layout, on_device(inputs))
            results.append(run_modified(op, tensors, modify, skip))
        for ours, truth in zip(*results, strict=True):
            torch.testing.assert_close(ours, truth)
    if skip is not None:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            run_modified(op, on_device(plain), lambda t: t.mul_(2), None)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("op", [op for op in CASES if op not in STATES and "topk" not in op])
def test_a_second_derivative_is_right_or_refused(op: str) -> None:
    """No part of it is left out in silence, though the first gradient's own input is constant."""
    generator = torch.Generator().manual_seed(6)
    inputs = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in on_device(inputs_of(op)).items()
    }
    names = [k for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    way = {k: torch.randn(inputs[k].shape, generator=generator).to(inputs[k]) for k in names}

    def penalty(step: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Squares of the gradients and of the inputs, a step along a random direction."""
        leaves = {k: (inputs[k] + step * way[k]).requires_grad_() for k in names}
        out = as_tuple(getattr(tvkernels, op)(**{**inputs, **leaves}))
        total = sum(x.sum() for x in out if x.requires_grad)
        xs = list(leaves.values())
        grads = torch.autograd.grad(total, xs, create_graph=True, materialize_grads=True)
        return sum(x.square().sum() for x in (*grads, *xs)), xs

    found, leaves = penalty(0.0)
    refusal, grads = "", ()
    try:
        grads = torch.autograd.grad(found, leaves)
    except NotImplementedError as error:
        refusal = str(error)
    if refusal:
        assert refusal.endswith(": only first order gradients, got a second derivative")
        return
    slope = sum((grad * way[k]).sum() for k, grad in zip(names, grads))
    ahead, behind = (penalty(step)[0].detach() for step in (1e-5, -1e-5))
    torch.testing.assert_close(slope, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-5)


def test_every_op_has_a_case() -> None:
    others = {"uniform_topk", "dropped_indices", *NOT_OPS}
    functions = {n for n in tvkernels.__all__ if n.islower()}
    assert functions - others == set(CASES)


@pytest.mark.parametrize("op", CASES)
def test_autocast_changes_nothing(op: str) -> None:
    inputs = inputs_of(op)
    expected = run(op, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        got = run(op, inputs)
    assert len(got) == len(expected)
    for ours, truth in zip(got, expected):
        torch.testing.assert_close(ours, truth, rtol=0, atol=0)


@pytest.mark.parametrize("op", MATRICES)
def test_a_compiled_op_is_out_of_the_reach_of_autocast(op: str) -> None:
    torch._dynamo.reset()
    inputs = inputs_of(op)
    expected = run(op, inputs)
    compiled = torch.compile(getattr(tvkernels, op), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        got = run(op, inputs, call=compiled)
    for ours, truth in zip(got, expected):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_the_references_are_out_of_the_reach_of_autocast() -> None:
    inputs = inputs_of("mamba_chunk_scan_combined")
    expected = tvkernels.reference.mamba_recurrence_ref(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got = tvkernels.reference.mamba_recurrence_ref(**inputs)
    for ours, truth in zip(got, expected):
        torch.testing.assert_close(ours, truth, rtol=0, atol=0)


def test_the_projection_of_the_mixer_follows_autocast_as_a_linear_does() -> None:
    inputs = {**inputs_of("mamba_split_conv1d_scan_combined"), "outproj_weight": torch.ones(5, 27)}
    with torch.autocast("cpu", torch.bfloat16):
        assert tvkernels.mamba_split_conv1d_scan_combined(**inputs).dtype == torch.bfloat16


@pytest.mark.parametrize("op", CASES)
def test_an_empty_batch_gives_empty_results(op: str) -> None:
    one, none = run_plain(op, inputs_of(op, 1)), run_plain(op, inputs_of(op, 0))
    for full, empty in zip(one, none):
        assert (empty.dtype, tuple(empty.shape)) == (full.dtype, (0, *full.shape[1:]))


@pytest.mark.parametrize("op", STATES)
def test_an_empty_batch_writes_no_state(op: str) -> None:
    inputs = inputs_of(op, 0)
    before = {name: inputs[name].clone() for name in STATES[op]}
    run_plain(op, inputs)
    assert all(torch.equal(inputs[name], state) for name, state in before.items())


@pytest.mark.parametrize("op", ["rms_norm", "rmsnorm_fn", "layernorm_fn"])
def test_a_norm_of_no_channels_is_empty(op: str) -> None:
    none = torch.zeros(0)
    inputs = {"x": torch.zeros(3, 0), "weight": none, "eps": 1e-5}
    if op != "rms_norm":
        inputs["bias"] = None
    assert getattr(tvkernels, op)(**inputs).shape == (3, 0)


def run_plain(op: str, inputs: Tensors) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return as_tuple(getattr(tvkernels, op)(**inputs))
