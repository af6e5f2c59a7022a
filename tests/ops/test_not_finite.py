"""What NaN and infinity do: they show in all that depends on them, and reach no other sample.

One element of one input is NaN or infinite. The formulas in float64 (formulas.py), for the scan its
recurrence, say which results are NaN, which are infinite and of which sign, and what the others are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tvkernels
from tests.contract import as_tuple, on_device
from tests.interpreter import INTERPRETED
from tests.ops.formulas import formula
from tests.ops.test_every_op import CASES, STATES, Tensors
from tvkernels.core.backend import forced_backend

law = settings(
    max_examples=2 if INTERPRETED else 5, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
VALUES = st.sampled_from([math.nan, math.inf, -math.inf])

Randn = Callable[..., torch.Tensor]


def _scan(randn: Randn, batch: int = 1, seqlen: int = 40, **more: Any) -> Tensors:
    """Two heads that share B and C: small, for the interpreter."""
    tokens = (batch, seqlen)
    return {
        "x": randn(*tokens, 2, 6), "dt": randn(*tokens, 2), "A": -randn(2).square() - 1,
        "B": randn(*tokens, 1, 5), "C": randn(*tokens, 1, 5), "chunk_size": 16, "D": randn(2),
        "z": randn(*tokens, 2, 6), "initial_states": randn(batch, 2, 6, 5), "dt_softplus": True,
        "return_final_states": True, **more,
    }  # fmt: skip


ENDS = (0, 7, 19, 40)
NUMBERS = torch.tensor([0] * 7 + [1] * 12 + [2] * 21, dtype=torch.int32)[None]

# sequences that lie one behind the other, with offsets ENDS
PACKED: dict[str, tuple[str, Callable[[Randn], Tensors]]] = {
    "scan": ("mamba_chunk_scan_combined", lambda randn: _scan(randn, seq_idx=NUMBERS)),
    "scan, with states": (
        "mamba_chunk_scan_combined",
        lambda randn: _scan(
            randn, seq_idx=NUMBERS, cu_seqlens=torch.tensor(ENDS), return_varlen_states=True
        ),
    ),
    "convolution": (
        "causal_conv1d_fn",
        lambda randn: {"x": randn(1, 6, 40), "weight": randn(6, 4), "seq_idx": NUMBERS},
    ),
    "states of the convolution": (
        "causal_conv1d_varlen_states",
        lambda randn: {"x": randn(40, 6), "cu_seqlens": torch.tensor(ENDS), "state_len": 3},
    ),
    "cross attention": (
        "gated_cross_attention",
        lambda randn: {
            "text": randn(1, 40, 32), "q": randn(1, 40, 4, 8), "k": randn(1, 40, 2, 8),
            "v": randn(1, 40, 2, 8), "alpha": randn(1), "cu_seqlens_q": torch.tensor(ENDS),
            "cu_seqlens_k": torch.tensor(ENDS),
        },
    ),
    "selection": (
        "attention_topk",
        lambda randn: {
            "q": randn(3, 4, 8), "k": randn(1, 40, 2, 8), "keep": [2, 3, 4],
            "span": [(0, 7), (0, 12), (0, 21)], "cu_seqlens": list(ENDS),
        },
    ),
}  # fmt: skip


def _made(make: Callable[[Randn], Tensors]) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    return make(lambda *shape: torch.randn(*shape, generator=generator))


def _batch(op: str) -> Tensors:
    """A batch of 3, as many rows as the states of steps have."""
    if op == "mamba_chunk_scan_combined":
        return _made(lambda randn: _scan(randn, 3, 20))
    found = _made(lambda randn: CASES[op](3, randn))
    if "split" in op:
        found["zxbcdt"] = found["zxbcdt"][:, :12]
    return found


def _floats(inputs: Tensors) -> list[str]:
    return [
        name for name, x in inputs.items() if isinstance(x, torch.Tensor) and x.is_floating_point()
    ]


def _spoilt(inputs: Tensors, name: str, at: int, value: float) -> tuple[Tensors, tuple[int, ...]]:
    """The inputs with one element replaced, and its place."""
    x = inputs[name].clone()
    place = torch.unravel_index(torch.tensor(at % x.numel()), x.shape)
    x[place] = value
    return {**inputs, name: x}, tuple(int(i) for i in place)


def results(op: str, inputs: Tensors) -> list[torch.Tensor]:
    """Results and the tensors that are written in place."""
    copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    with torch.no_grad():
        out = as_tuple(getattr(tvkernels, op)(**on_device(copies)))
    return [x for x in (*out, *(copies[k] for k in STATES.get(op, ()))) if x is not None]


def assert_as_formula(op: str, inputs: Tensors, got: list[torch.Tensor]) -> None:
    """NaN, infinities, their signs and the finite values are where the formula has them."""
    for ours, truth in zip(got, formula(op, inputs), strict=True):
        if not truth.is_floating_point():
            assert torch.equal(ours.cpu().long(), truth.long())
            continue
        if (
            op == "mamba_chunk_scan_combined"
            and forced_backend("ssd") == "triton"
            and not inputs["C"].isfinite().all()
        ):
            # the kernel has NaN at a token with an infinity in C
            truth = truth.where(truth.isfinite(), math.nan)
        torch.testing.assert_close(ours.cpu().double(), truth, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("op", CASES)
@law
@given(st.data())
def test_what_is_not_finite_is_what_the_formula_gives(op: str, data: st.DataObject) -> None:
    clean = _made(lambda randn: CASES[op](2 if "scan_combined" not in op else 1, randn))
    name = data.draw(st.sampled_from(_floats(clean)))
    at, value = data.draw(st.integers(0, clean[name].numel() - 1)), data.draw(VALUES)
    inputs, _ = _spoilt(clean, name, at, value)
    assert_as_formula(op, inputs, results(op, inputs))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["x", "dt", "B", "C", "D", "z", "initial_states"])
def test_infinities_in_the_scan_are_not_NaN(name: str) -> None:
    """With B and C positive, the terms of a sum have the sign of x."""
    clean = _made(lambda randn: _scan(randn, D=torch.ones(2)))
    clean = {**clean, "B": clean["B"].abs(), "C": clean["C"].abs(), "z": clean["z"].abs()}
    inputs, _ = _spoilt(clean, name, clean[name].numel() // 2, math.inf)
    assert formula("mamba_chunk_scan_combined", inputs)[0].isinf().any()
    assert_as_formula(
        "mamba_chunk_scan_combined", inputs, results("mamba_chunk_scan_combined", inputs)
    )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("op", [op for op in CASES if op != "causal_conv1d_varlen_states"])
@law
@given(st.data())
def test_it_reaches_no_other_row_of_a_batch(op: str, data: st.DataObject) -> None:
    clean = _batch(op)
    name = data.draw(st.sampled_from([n for n in _floats(clean) if len(clean[n]) == 3]))
    at, value = data.draw(st.integers(0, clean[name].numel() - 1)), data.draw(VALUES)
    inputs, (row, *_) = _spoilt(clean, name, at, value)
    others = torch.arange(3) != row
    for ours, truth in zip(results(op, inputs), results(op, clean), strict=True):
        assert_alike(ours[others.to(ours.device)], truth[others.to(ours.device)])


def assert_alike(got: torch.Tensor, want: torch.Tensor) -> None:
    """Equal up to a rounding: PyTorch's own products depend on where a tensor lies in memory."""
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def _sequences_of(result: torch.Tensor) -> list[torch.Tensor] | None:
    """The parts of a result that belong to the sequences; None where it belongs to the row."""
    if 40 in result.shape:
        return list(result.split([7, 12, 21], dim=result.shape.index(40)))
    return list(result) if result.shape[0] == 3 else None


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", PACKED)
@law
@given(st.data())
def test_it_reaches_no_packed_neighbour(case: str, data: st.DataObject) -> None:
    op, make = PACKED[case]
    clean = _made(make)
    names = [n for n in _floats(clean) if _sequences_of(clean[n]) is not None]
    name = data.draw(st.sampled_from(names))
    at, value = data.draw(st.integers(0, clean[name].numel() - 1)), data.draw(VALUES)
    inputs, _ = _spoilt(clean, name, at, value)
    parts = [p.isfinite().all() for p in _sequences_of(inputs[name])]
    hurt = parts.index(False)
    found = results(op, inputs)
    if op == "mamba_chunk_scan_combined":
        assert_as_formula(op, inputs, found)
    for ours, truth in zip(found, results(op, clean), strict=True):
        if op == "attention_topk" and ours.ndim == 1 and len(ours) not in (40,):
            continue
        for number, (a, b) in enumerate(zip(_sequences_of(ours) or (), _sequences_of(truth) or ())):
            if number != hurt:
                assert_alike(a, b)


def _gradients(op: str, inputs: Tensors, weight: Callable[[torch.Tensor], Any]) -> Tensors:
    """The gradient of each input, for the sum of `weight` times every result that has one."""
    inputs = on_device(inputs)
    leaves = {name: inputs[name].clone().requires_grad_() for name in _floats(inputs)}
    outs = [x for x in as_tuple(getattr(tvkernels, op)(**{**inputs, **leaves})) if x is not None]
    total = sum((x * weight(x)).sum() for x in outs if x.requires_grad)
    found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found))


@functools.cache
def _clean_gradients(op: str, backend: str) -> Tensors:
    return _gradients(op, _batch(op), torch.ones_like)


LEARNS = [
    op for op in CASES if op not in STATES and not op.startswith(("attention", "causal_conv1d_v"))
]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=pytest.mark.long if "split" in op else ()) for op in LEARNS]
)
@law
@given(st.data())
def test_a_gradient_reaches_no_other_row_of_a_batch(op: str, data: st.DataObject) -> None:
    clean = _batch(op)
    names = [n for n in _floats(clean) if len(clean[n]) == 3]
    name = data.draw(st.sampled_from(names))
    at, value = data.draw(st.integers(0, clean[name].numel() - 1)), data.draw(VALUES)
    inputs, (row, *_) = _spoilt(clean, name, at, value)
    others = [r for r in range(3) if r != row]
    got, want = _gradients(op, inputs, torch.ones_like), _clean_gradients(op, forced_backend("ssd"))
    for rows in names:
        assert_alike(got[rows][others], want[rows][others])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "case",
    [
        "scan",
        pytest.param("scan, with states", marks=pytest.mark.long),
        "convolution",
        "cross attention",
    ],
)
@law
@given(st.data())
def test_a_gradient_reaches_no_packed_neighbour(case: str, data: st.DataObject) -> None:
    """Of a spoilt input, and of a spoilt gradient of the result's tokens."""
    op, make = PACKED[case]
    clean = _made(make)
    hurt = data.draw(st.integers(0, 2))
    names = [n for n in _floats(clean) if 40 in clean[n].shape]
    # a text row is added to its result, so no gradient depends on it
    felt = [n for n in names if n != "text"]
    name = data.draw(st.sampled_from([*felt, "the gradient"]))
    spoilt = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in clean.items()}
    value = data.draw(VALUES)
    if name != "the gradient":
        _sequences_of(spoilt[name])[hurt][..., -1] = value

    def weight(x: torch.Tensor) -> torch.Tensor:
        ones = torch.ones_like(x)
        if name == "the gradient" and 40 in x.shape:
            _sequences_of(ones)[hurt][..., -1] = value
        return ones

    got, want = _gradients(op, spoilt, weight), _gradients(op, clean, torch.ones_like)
    assert not all(x.isfinite().all() for x in got.values())
    for tokens in names:
        parts = zip(_sequences_of(got[tokens]), _sequences_of(want[tokens]))
        for number, (ours, truth) in enumerate(parts):
            if number != hurt:
                assert_alike(ours, truth)
