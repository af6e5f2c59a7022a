"""Token selection, from keys and from the hidden stream, against a naive statement in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import assert_close_by_rule, cast, check_contract
from tests.footprint import largest_tensor
from tests.ops.attention_topk.common import (
    assert_same,
    law,
    naive_hidden,
    naive_topk,
    randn,
    rope_angles,
    rope_tables,
    rotated,
)
from tvkernels.attention_topk import (
    attention_topk,
    attention_topk_hidden,
    dropped_indices,
    uniform_topk,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "nheads", "nkvheads", "scale"),
    [(None, 5, 1, None), (3, 6, 2, 0.3), (1, 4, 4, None)],
)
def test_contract(
    dtype: torch.dtype, queries: int | None, nheads: int, nkvheads: int, scale: float | None
) -> None:
    shape = (2, nheads, 16) if queries is None else (2, queries, nheads, 16)
    inputs = {
        "q": randn(*shape), "k": randn(2, 70, nkvheads, 16), "keep": 13, "span": (7, 50),
        "scale": scale,
    }  # fmt: skip
    check_contract(attention_topk, naive_topk, inputs, dtype=dtype)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("with_rope", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_hidden_contract(
    dtype: torch.dtype, with_norm: bool, with_rope: bool, with_bias: bool
) -> None:
    angles = rope_angles(60, 16) if with_rope else None
    tables = cast(
        {"q": randn(2, 6, 16), "hidden": randn(2, 60, 40), "k_weight": randn(32, 40) / 6}, dtype
    )
    norm = randn(40).to(dtype) if with_norm else None
    bias = 2 * randn(32).to(dtype) if with_bias else None
    got = attention_topk_hidden(
        **tables, keep=11, span=(4, 48), norm_weight=norm, k_bias=bias,
        rope=None if angles is None else rope_tables(angles),
    )  # fmt: skip
    exact = {name: x.double() for name, x in tables.items()}
    rest = {"keep": 11, "span": (4, 48), "angles": angles}
    norms = [None if x is None else x.double() for x in (norm, bias)]
    truth = naive_hidden(**exact, **rest, norm=norms[0], bias=norms[1])
    plain = naive_hidden(**tables, **rest, norm=norm, bias=bias)
    assert torch.equal(got.kept, truth[0])
    assert torch.equal(got.dropped, truth[1])
    assert got.scores.dtype == torch.promote_types(dtype, torch.float32)
    assert_close_by_rule(got.scores, plain[2], truth[2], "scores")


@pytest.mark.usefixtures("backend")
def test_videochat_flash_rule_with_its_own_eps_and_rotated_query() -> None:
    angles = rope_angles(90, 16)
    hidden, weight, norm = randn(1, 90, 40), randn(32, 40) / 6, randn(40)
    q = rotated(randn(1, 4, 16), angles[89])
    got = attention_topk_hidden(
        q, hidden, weight, 20, (5, 70), norm_weight=(norm, 0.5), rope=rope_tables(angles)
    )
    want = naive_hidden(
        q.double(), hidden.double(), weight.double(), 20, (5, 70), norm.double(), 0.5, angles
    )
    assert_same(got, want)
    default = attention_topk_hidden(
        q, hidden, weight, 20, (5, 70), norm_weight=norm, rope=rope_tables(angles)
    )
    assert not torch.allclose(default.scores, got.scores, rtol=1e-3)


@pytest.mark.usefixtures("backend")
@law
@given(
    nkvheads=st.integers(1, 3), group=st.integers(1, 4), queries=st.integers(1, 3),
    seqlen=st.integers(1, 60), seed=st.integers(0, 99),
)  # fmt: skip
def test_hidden_form_is_the_keys_form(
    nkvheads: int, group: int, queries: int, seqlen: int, seed: int
) -> None:
    q = randn(2, queries, nkvheads * group, 8, seed=seed)
    hidden, weight = randn(2, seqlen, 24, seed=seed), randn(nkvheads * 8, 24, seed=seed)
    keys = (hidden.double() @ weight.double().T).unflatten(-1, (nkvheads, 8))
    keep, span = seqlen // 2, (0, seqlen)
    folded = attention_topk_hidden(q.double(), hidden.double(), weight.double(), keep, span)
    assert_same(folded, attention_topk(q.double(), keys, keep, span))


@pytest.mark.usefixtures("backend")
def test_a_key_bias_counts_where_keys_are_rotated_and_only_there() -> None:
    angles = rope_angles(60, 16)
    given = (randn(1, 4, 16), randn(1, 60, 40), randn(32, 40) / 6, 11, (4, 48))
    for rope in (None, rope_tables(angles)):
        without = attention_topk_hidden(*given, rope=rope)
        got = attention_topk_hidden(*given, rope=rope, k_bias=2 * randn(32))
        assert torch.equal(got.scores, without.scores) == (rope is None)


@pytest.mark.usefixtures("backend")
def test_no_gradient_flows_through_the_selection() -> None:
    q, k = randn(1, 4, 8).requires_grad_(), randn(1, 30, 2, 8).requires_grad_()
    assert not any(t.requires_grad for t in attention_topk(q, k, 4, (0, 30)))
    given = [randn(1, 30, 12).requires_grad_(), randn(16, 12).requires_grad_()]
    rope, bias = rope_tables(rope_angles(30, 8)), randn(16).requires_grad_()
    chosen = attention_topk_hidden(q, *given, 4, (0, 30), rope=rope, k_bias=bias)
    assert not any(t.requires_grad for t in chosen)


@pytest.mark.parametrize("form", ["keys", "hidden", "rope"])
def test_memory_is_linear_in_seqlen(form: str) -> None:
    def elements(seqlen: int) -> int:
        q, hidden, weight = randn(1, 4, 16), randn(1, seqlen, 16), randn(32, 16)
        k, rope = randn(1, seqlen, 2, 16), rope_tables(rope_angles(seqlen, 16))
        rest = (seqlen // 4, (0, seqlen))
        return largest_tensor(
            {
                "keys": lambda: attention_topk(q, k, *rest),
                "hidden": lambda: attention_topk_hidden(q, hidden, weight, *rest),
                "rope": lambda: attention_topk_hidden(q, hidden, weight, *rest, rope=rope),
            }[form]
        )

    # nothing larger than the logits, 4 per key, or one block
    assert elements(16384) <= 4 * 16384
    assert elements(32768) <= 4 * 32768


def test_compiles_whole() -> None:
    q, hidden, weight = randn(1, 4, 16), randn(1, 50, 24), randn(32, 24)

    def select(q, hidden, weight):
        uniform = uniform_topk(45, 9, q.device)
        chosen = attention_topk_hidden(q, hidden, weight, 9, (1, 45), norm_weight=weight[0])
        keys = (hidden @ weight.T).unflatten(-1, (2, 16))
        return *chosen, *attention_topk(q, keys, 9, (1, 45)), dropped_indices(uniform, 45)

    compiled = torch.compile(select, fullgraph=True, backend="eager")
    for a, b in zip(compiled(q, hidden, weight), select(q, hidden, weight)):
        assert torch.equal(a, b)


def test_meta_tensors_carry_shapes_so_nothing_is_read_back() -> None:
    q = torch.empty(2, 40, 128, dtype=torch.bfloat16, device="meta")
    hidden, weight = q.new_empty(2, 500, 64), q.new_empty(1024, 64)
    got = attention_topk_hidden(q, hidden, weight, 30, (10, 400), norm_weight=hidden[0, 0])
    keys = attention_topk(q, q.new_empty(2, 500, 8, 128), 30, (10, 400))
    for result in (got, keys):
        assert [(tuple(t.shape), t.dtype) for t in result] == [
            ((2, 30), torch.int64),
            ((2, 370), torch.int64),
            ((2, 400), torch.float32),
        ]
    kept = uniform_topk(400, 30, "meta")
    assert dropped_indices(kept, 400).shape == (370,)
