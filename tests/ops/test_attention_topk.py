"""Token selection against goldens of upstream, naive float64 statements, and its laws."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.contract import assert_close_by_rule, cast, check_contract, device, on_device
from tests.footprint import largest_tensor
from tests.interpreter import INTERPRETED
from tvkernels.attention_topk import (
    attention_topk,
    attention_topk_hidden,
    dropped_indices,
    uniform_topk,
)

DATA = Path(__file__).parents[1] / "data"
# the fixture `backend` stays the same for all examples of a run
law = settings(
    max_examples=4 if INTERPRETED else 20, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return x.to(device())


def pick(scores: list[float], keep: int) -> tuple[list[int], list[int]]:
    """The keep highest, ties to the lower index, and the rest; both ascending."""
    order = sorted(range(len(scores)), key=lambda t: (-scores[t], t))
    return sorted(order[:keep]), sorted(order[keep:])


def naive_topk(
    q: torch.Tensor, k: torch.Tensor, keep: int, span: tuple[int, int], scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Head by head, query by query."""
    q = q[:, None] if q.ndim == 3 else q
    batch, n_queries, nheads, headdim = q.shape
    start, length = span
    kept, dropped, scores = [], [], []
    for b in range(batch):
        rows = []
        for i in range(n_queries):
            for h in range(nheads):
                keys = k[b, :, h // (nheads // k.shape[2])]
                rows.append(torch.softmax(keys @ q[b, i, h] * (scale or headdim**-0.5), 0))
        score = torch.stack(rows).mean(0)[start : start + length]
        best, rest = pick(score.float().tolist(), keep)
        kept.append(best)
        dropped.append(rest)
        scores.append(score.to(torch.promote_types(q.dtype, torch.float32)))
    stacked = torch.stack(scores)
    indices = (torch.tensor(part, device=stacked.device).long() for part in (kept, dropped))
    return *indices, stacked


def naive_hidden(
    q: torch.Tensor,
    hidden: torch.Tensor,
    k_weight: torch.Tensor,
    keep: int,
    span: tuple[int, int],
    norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    angles: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """VideoChat-Flash's rule said plainly: norm, project, rotate as complex numbers, score."""
    x = hidden
    if norm is not None:
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * norm
    keys = (x @ k_weight.T).unflatten(-1, (-1, q.shape[-1]))
    if angles is not None:
        keys = rotated(keys, angles[:, None])
    return naive_topk(q, keys, keep, span, scale)


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Channels (i, i + headdim / 2) as one complex number, turned by angles[i]."""
    first, second = x.double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def rope_angles(seqlen: int, headdim: int) -> torch.Tensor:
    frequency = 10000.0 ** (-torch.arange(headdim // 2, dtype=torch.float64) / (headdim // 2))
    return (torch.arange(seqlen, dtype=torch.float64)[:, None] * frequency).to(device())


def rope_tables(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)


def assert_same(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> None:
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[2], want[2].to(got[2].dtype), atol=1e-7, rtol=1e-5)


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
def test_hidden_contract(dtype: torch.dtype, with_norm: bool, with_rope: bool) -> None:
    angles = rope_angles(60, 16) if with_rope else None
    tables = cast(
        {"q": randn(2, 6, 16), "hidden": randn(2, 60, 40), "k_weight": randn(32, 40) / 6}, dtype
    )
    norm = randn(40).to(dtype) if with_norm else None
    got = attention_topk_hidden(
        **tables, keep=11, span=(4, 48), norm_weight=norm,
        rope=None if angles is None else rope_tables(angles),
    )  # fmt: skip
    exact = {name: x.double() for name, x in tables.items()}
    rest = {"keep": 11, "span": (4, 48), "angles": angles}
    truth = naive_hidden(**exact, **rest, norm=None if norm is None else norm.double())
    plain = naive_hidden(**tables, **rest, norm=norm)
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


def golden_cases() -> list[dict[str, Any]]:
    return json.loads((DATA / "attention_scores.json").read_text())["cases"]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", golden_cases(), ids=lambda c: c["key"])
def test_goldens(case: dict[str, Any]) -> None:
    golden = on_device(load_file(DATA / "attention_scores.safetensors"))
    key, prefix, vision, keep = case["key"], case["prefix"], case["vision"], case["kept"]
    hidden, k_weight = golden[f"{key}.features"], golden["attn.k_proj.weight"]
    q = (hidden[:, -1] @ golden["attn.q_proj.weight"].T).unflatten(-1, (5, 16))
    k = (hidden @ k_weight.T).unflatten(-1, (1, 16))
    for got in (
        attention_topk(q, k, keep, (prefix, vision)),
        attention_topk_hidden(q, hidden, k_weight, keep, (prefix, vision)),
    ):
        assert torch.equal(got.kept[0], golden[f"{key}.kept_sorted"].long())
        want = golden[f"{key}.vision_scores"]
        torch.testing.assert_close(got.scores[0], want, atol=1e-7, rtol=1e-5)
        chosen = [prefix + t for t in got.kept[0].tolist()]
        rows = [*range(prefix), *chosen, *range(prefix + vision, hidden.shape[1])]
        assert torch.equal(hidden[:, rows], golden[f"{key}.features_out"])


def test_uniform_goldens() -> None:
    rows = json.loads((DATA / "uniform_indices.json").read_text())["rows"]
    golden = load_file(DATA / "uniform_indices.safetensors")
    assert len(rows) >= 20
    for row in rows:
        got = uniform_topk(row["before"], row["after"], "cpu")
        assert got.dtype == torch.int64
        assert torch.equal(got, golden[row["key"]].long()), row


@settings(max_examples=100, deadline=None, derandomize=True)
@given(length=st.integers(1, 200_000), share=st.floats(0, 1))
def test_uniform_is_the_float64_rule(length: int, share: float) -> None:
    keep = int(length * share)
    got = uniform_topk(length, keep, "cpu").numpy()
    steps = np.arange(keep, dtype=np.float64)
    want = np.trunc(steps * (length - 1) / (keep - 1)) if keep > 1 else np.zeros(keep)
    assert np.array_equal(got, want.astype(np.int64))


@pytest.mark.usefixtures("backend")
@law
@given(
    length=st.integers(0, 40), share=st.floats(0, 1), before=st.integers(0, 5),
    after=st.integers(1, 5), levels=st.integers(1, 4), seed=st.integers(0, 999),
)  # fmt: skip
def test_topk_with_ties_to_the_lower_index(
    length: int, share: float, before: int, after: int, levels: int, seed: int
) -> None:
    """Few distinct keys, so that most scores tie; equal keys must tie whatever their position."""
    g = torch.Generator().manual_seed(seed)
    distinct = torch.randn(levels, 1, 16, generator=g)
    which = torch.randint(0, levels, (before + length + after,), generator=g)
    q, keep = torch.randn(1, 5, 16, generator=g), int(length * share)
    kept, dropped, scores = attention_topk(q, distinct[which][None], keep, (before, length))
    span = which[before : before + length]
    per_level = torch.stack([scores[0][span == level][:1].sum() for level in range(levels)])
    assert torch.equal(scores[0], per_level[span])
    best, rest = pick(scores[0].tolist(), keep)
    assert kept[0].tolist() == best
    assert dropped[0].tolist() == rest
    # the values kept are those of torch.topk, which leaves the choice among ties open
    values = scores[0].topk(keep).values
    assert torch.equal(scores[0][kept[0]].sort(descending=True).values, values)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("form", ["keys", "hidden"])
@pytest.mark.parametrize("length", [33, 100, 2500])
def test_equal_keys_tie_at_every_position(form: str, length: int) -> None:
    """A matrix product may round equal dot products differently in its last columns."""
    q, weight = randn(1, 10, 16), randn(32, 48)
    if form == "keys":
        k = randn(1, 1, 2, 16).expand(1, length, 2, 16).contiguous()
        got = attention_topk(q, k, length // 2, (0, length))
    else:
        hidden = randn(1, 1, 48).expand(1, length, 48).contiguous()
        got = attention_topk_hidden(q, hidden, weight, length // 2, (0, length))
    assert bool((got.scores == got.scores[0, 0]).all())
    assert torch.equal(got.kept[0], torch.arange(length // 2))


@pytest.mark.usefixtures("backend")
@law
@given(length=st.integers(0, 50), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_kept_and_dropped_partition_the_span(length: int, share: float, seed: int) -> None:
    keep = int(length * share)
    q, k = randn(2, 4, 8, seed=seed), randn(2, length + 3, 2, 8, seed=seed)
    got = attention_topk(q, k, keep, (2, length))
    assert got.kept.shape == (2, keep)
    assert got.dropped.shape == (2, length - keep)
    for kept, dropped in zip(got.kept.tolist(), got.dropped.tolist()):
        assert sorted(kept + dropped) == list(range(length))
        assert (kept, dropped) == (sorted(kept), sorted(dropped))
    for b in range(2):
        assert torch.equal(dropped_indices(got.kept[b], length), got.dropped[b])
    assert torch.equal(dropped_indices(got.kept, length), got.dropped)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("length", [0, 1, 30])
def test_keeping_all_or_nothing(length: int) -> None:
    q, k = randn(1, 4, 8), randn(1, 31, 2, 8)
    everything = attention_topk(q, k, length, (0, length))
    assert everything.kept[0].tolist() == [*range(length)]
    assert everything.dropped.shape == (1, 0)
    nothing = attention_topk(q, k, 0, (0, length))
    assert nothing.kept.shape == (1, 0)
    assert nothing.dropped[0].tolist() == [*range(length)]
    assert torch.equal(uniform_topk(length, length, "cpu"), torch.arange(length))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("form", ["keys", "hidden"])
@pytest.mark.parametrize("as_ints", [False, True])
@pytest.mark.parametrize("queries", [(), (2,)])
def test_packed_is_each_alone(form: str, as_ints: bool, queries: tuple[int, ...]) -> None:
    cu, keep, span = [0, 20, 20 + 9, 29 + 40], [4, 9, 0], [(3, 15), (0, 9), (30, 10)]
    q = randn(3, *queries, 4, 8)
    rope = rope_tables(rope_angles(69, 8))
    packed = randn(1, 69, 2, 8) if form == "keys" else randn(1, 69, 24)
    weight = randn(16, 24)

    def run(q, rows, keep, span, cu=None):
        part = packed[:, rows]
        if form == "keys":
            return attention_topk(q, part, keep, span, cu_seqlens=cu)
        table = (rope[0][rows], rope[1][rows])
        return attention_topk_hidden(q, part, weight, keep, span, rope=table, cu_seqlens=cu)

    offsets = cu if as_ints else torch.tensor(cu, dtype=torch.int32)
    together = run(q, slice(None), keep, span, offsets)
    parts = (together.kept.split(keep), together.dropped.split([11, 0, 10]))
    parts = (*parts, together.scores.split([15, 9, 10]))
    for i in range(3):
        alone = run(q[i : i + 1], slice(cu[i], cu[i + 1]), keep[i], span[i])
        for mine, single in zip(parts, alone):
            assert torch.equal(mine[i], single[0])


def test_blocks_of_keys_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    q, hidden, weight, norm = randn(1, 4, 16), randn(1, 50, 24), randn(32, 24), randn(24)
    k, rope = randn(1, 50, 2, 16), rope_tables(rope_angles(50, 16))

    def all_three():
        yield attention_topk(q, k, 9, (1, 45))
        yield attention_topk_hidden(q, hidden, weight, 9, (1, 45), norm_weight=norm)
        yield attention_topk_hidden(q, hidden, weight, 9, (1, 45), rope=rope)

    whole = list(all_three())
    # by name, because tvkernels.attention_topk, the function, hides the folder of the same name
    monkeypatch.setattr(import_module("tvkernels.attention_topk.reference"), "KEY_BLOCK", 7)
    for a, b in zip(whole, all_three()):
        assert_same(a, b)


@pytest.mark.usefixtures("backend")
def test_no_gradient_flows_through_the_selection() -> None:
    q, k = randn(1, 4, 8).requires_grad_(), randn(1, 30, 2, 8).requires_grad_()
    assert not any(t.requires_grad for t in attention_topk(q, k, 4, (0, 30)))


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
