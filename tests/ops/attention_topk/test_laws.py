"""Laws of token selection: ties, partitions of the span, packing, blocks of keys."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.footprint import largest_tensor
from tests.ops.attention_topk.common import assert_same, law, pick, randn, rope_angles, rope_tables
from tvkernels.attention_topk import (
    attention_topk,
    attention_topk_hidden,
    dropped_indices,
    uniform_topk,
)


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
@pytest.mark.parametrize(("length", "behind"), [(300, 90), (256, 3), (20, 5), (200, 0)])
@pytest.mark.parametrize("form", ["plain", "normed", "turned"])
def test_a_tail_is_hidden_s_own_end(
    form: str, length: int, behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in blocks and tiles that hold tokens of both."""
    monkeypatch.setattr(import_module("tvkernels.attention_topk.reference"), "KEY_BLOCK", 128)
    whole, weight, options = randn(2, length + behind, 48), randn(32, 48), {}
    if form != "plain":
        options["norm_weight"] = randn(48)
    if form == "turned":
        options |= {"rope": rope_tables(rope_angles(length + behind, 16)), "k_bias": randn(32)}
    for dtype in (torch.float32, torch.bfloat16):
        hidden, q = whole.to(dtype), randn(2, 4, 16).to(dtype)
        how = (weight, length // 3, (2, length - 2))
        want = attention_topk_hidden(q, hidden, *how, **options)
        parts = hidden[:, :length].contiguous(), hidden[:, length:].contiguous()
        got = attention_topk_hidden(q, parts[0], *how, **options, tail=parts[1])
        assert all(map(torch.equal, got, want))


def test_a_tail_copies_nothing_of_hidden() -> None:
    q, hidden, weight = randn(1, 4, 16), randn(1, 6000, 48), randn(32, 48)
    tail = randn(1, 30, 48)

    def run() -> None:
        attention_topk_hidden(q, hidden, weight, 50, (0, 6000), tail=tail)

    # logits, and a block of 1,024 tokens
    assert largest_tensor(run) <= 1024 * 48 < hidden.numel()
