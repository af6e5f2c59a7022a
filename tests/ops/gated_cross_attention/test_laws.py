"""Laws of gated_cross_attention: a closed gate, no keys, packing, blocks of rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import check_contract
from tests.ops import common
from tests.ops.gated_cross_attention.common import (
    DIFFERENTIABLE,
    DTYPES,
    REFERENCE,
    bits,
    learnt,
    make,
    naive,
)
from tvkernels.gated_cross_attention import gated_cross_attention

law = settings(common.law, max_examples=15)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key_has_all_the_weight(dtype: torch.dtype) -> None:
    """With one key the weight is 1 for any q and k, so their gradients are 0 up to rounding."""
    inputs = make(m=1)
    wrt = [name for name in learnt(dtype, "out_proj") if name not in ("q", "k")]
    check_contract(gated_cross_attention, naive, inputs, dtype=dtype, wrt=wrt)
    inputs = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
    out = gated_cross_attention(**inputs)
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for grad in torch.autograd.grad(out.sum(), (inputs["q"], inputs["k"])):
        assert float(grad.abs().max()) <= 100 * eps


@law
@given(
    n=st.integers(0, 6), m=st.integers(0, 20), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_alpha_zero_returns_the_text_bitwise(
    backend: str, n: int, m: int, dtype: torch.dtype, seed: int
) -> None:
    inputs = {k: v.to(dtype) for k, v in make(n=n, m=m, alpha=0.0, seed=seed).items()}
    inputs["text"][:, :, ::3] = -0.0
    assert torch.equal(bits(gated_cross_attention(**inputs)), bits(inputs["text"]))


@pytest.mark.usefixtures("backend")
def test_alpha_zero_holds_even_where_the_update_is_not_finite() -> None:
    inputs = make(alpha=0.0)
    inputs["v"][0, 3] = float("inf")
    inputs["k"][1, 3] = float("nan")
    assert torch.equal(gated_cross_attention(**inputs), inputs["text"])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_no_keys_return_the_text(alpha: float) -> None:
    inputs = make(m=0, alpha=alpha)
    inputs["text"][0, 0] = -0.0
    assert torch.equal(bits(gated_cross_attention(**inputs)), bits(inputs["text"]))


@law
@given(
    text_lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    key_lengths=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    as_ints=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_packed_is_each_alone(
    backend: str, text_lengths: list[int], key_lengths: list[int], as_ints: bool, seed: int
) -> None:
    key_lengths = key_lengths[: len(text_lengths)]
    inputs = make(batch=1, n=sum(text_lengths), m=sum(key_lengths), seed=seed)
    cu_q = [sum(text_lengths[:i]) for i in range(len(text_lengths) + 1)]
    cu_k = [sum(key_lengths[:i]) for i in range(len(key_lengths) + 1)]
    offsets = (cu_q, cu_k) if as_ints else (torch.tensor(cu_q).int(), torch.tensor(cu_k).int())
    packed = gated_cross_attention(**inputs, cu_seqlens_q=offsets[0], cu_seqlens_k=offsets[1])
    alone = []
    for (a, b), (c, d) in zip(pairwise(cu_q), pairwise(cu_k)):
        rows = {name: inputs[name][:, a:b] for name in ("text", "q")}
        keys = {name: inputs[name][:, c:d] for name in ("k", "v")}
        alone.append(gated_cross_attention(**{**inputs, **rows, **keys}))
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("backend")
def test_a_packed_sequence_without_keys_keeps_its_text_bitwise() -> None:
    inputs = make(batch=1, n=5, m=9)
    inputs["text"][0, 2:] = -0.0
    out = gated_cross_attention(**inputs, cu_seqlens_q=[0, 2, 5], cu_seqlens_k=[0, 9, 9])
    assert torch.equal(bits(out[:, 2:]), bits(inputs["text"][:, 2:]))
    assert not torch.equal(out[:, :2], inputs["text"][:, :2])


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    wrt = (*DIFFERENTIABLE, "out_proj")
    monkeypatch.setattr(REFERENCE, "MAP_BLOCK", 900)
    check_contract(gated_cross_attention, naive, make(n=20), wrt=wrt)
