"""tome_merge against goldens of upstream, a float64 step-by-step statement, and its laws."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.contract import check_contract, device, on_device
from tests.footprint import largest_tensor
from tests.interpreter import INTERPRETED
from tvkernels.tome import tome_merge

DATA = Path(__file__).parents[1] / "data"
GOLDENS = sorted(DATA.glob("tome_*.json"))
law = settings(
    # the interpreter takes half a second for what the reference does in one millisecond
    max_examples=8 if INTERPRETED else 20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def naive_row(
    x: torch.Tensor, num_tokens: int, num_heads: int, gaps: list[float] | None = None
) -> list[list[int]]:
    """Members of each slot of one row (seqlen, dim), in raw order: merged means, round by round.

    `gaps` gets the differences of similarities, but for exact ties, that any choice rested on.
    """
    x = x.detach().double().cpu()
    slots = [[i] for i in range(len(x))]
    while len(slots) > num_tokens:
        merged = min(len(slots) - num_tokens, len(slots) // 2)
        units = []
        for members in slots:
            mean = torch.stack([x[i] for i in members]).mean(0)
            metric = mean.view(num_heads, -1).mean(0)
            norm = float(metric.norm())
            units.append(metric / norm if norm > 0 else metric)
        even, odd = list(range(0, len(slots), 2)), list(range(1, len(slots), 2))
        # twelve digits: what is equal in exact arithmetic compares as equal
        scores = [[round(float(units[i] @ units[j]), 12) for j in odd] for i in even]
        partner = [row.index(max(row)) for row in scores]
        order = sorted(range(len(even)), key=lambda i: (-max(scores[i]), i))
        if gaps is not None:
            ranked = [sorted(row) for row in (*scores, [max(row) for row in scores])]
            gaps += [b - a for row in ranked[:-1] for a, b in [two_best(row)] if b > a]
            gaps += [b - a for a, b in pairwise(ranked[-1]) if b > a]
        grown = [list(slots[j]) for j in odd]
        for i in order[:merged]:
            grown[partner[i]] += slots[even[i]]
        slots = [slots[even[i]] for i in order[merged:]] + grown
    return slots


def two_best(row: list[float]) -> tuple[float, float]:
    """Of a sorted row the highest value, and before it the next lower one."""
    return max((a for a in row if a < row[-1]), default=row[-1]), row[-1]


def margin(x: torch.Tensor, num_tokens: int, num_heads: int = 4) -> float:
    """How much similarities may be off before any choice in float64 could turn out differently."""
    gaps = [2.0]
    for row in x:
        naive_row(row, num_tokens, num_heads, gaps)
    return min(gaps) / 2


def naive_tome(
    x: torch.Tensor, num_tokens: int, num_heads: int = 4, order: str = "raw"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, sizes = [], []
    assignment = torch.zeros(x.shape[:2], dtype=torch.int32)
    for b, row in enumerate(x):
        slots = naive_row(row, num_tokens, num_heads)
        if order != "raw":
            slots = sorted(slots, key=len, reverse=order == "descending")
        tokens.append(torch.stack([row[members].mean(0) for members in slots]))
        sizes.append([len(members) for members in slots])
        for s, members in enumerate(slots):
            assignment[b, members] = s
    sizes = torch.tensor(sizes, dtype=torch.int32, device=x.device)
    return torch.stack(tokens), sizes, assignment.to(x.device)


def ours(x: torch.Tensor, num_tokens: int, num_heads: int = 4, order: str = "raw"):
    return tome_merge(x, num_tokens, num_heads=num_heads, order=order)


def clusters(batch: int, seqlen: int, dim: int, seed: int = 0) -> torch.Tensor:
    """On the device of the backend in force."""
    g = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(5, dim, generator=g)
    which = torch.randint(0, 5, (batch, seqlen), generator=g)
    return (centres[which] + torch.randn(batch, seqlen, dim, generator=g)).to(device())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("seqlen", "num_tokens", "order"),
    [(51, 9, "raw"), (51, 9, "ascending"), (64, 8, "descending"), (40, 39, "raw"), (33, 1, "raw")],
)
def test_contract(
    backend: str, dtype: torch.dtype, seqlen: int, num_tokens: int, order: str
) -> None:
    inputs = {
        "x": clusters(2, seqlen, 32), "num_tokens": num_tokens, "num_heads": 4, "order": order,
    }  # fmt: skip
    check_contract(ours, naive_tome, inputs, dtype=dtype, wrt=("x",))


def test_float64_is_computed_in_float64(backend: str) -> None:
    """The tolerance of the contract for it is that of float32."""
    x = clusters(2, 40, 16).double()
    x = (x + 1e-9 * x.square()).requires_grad_()
    got, want = ours(x, 9), naive_tome(x, 9)
    torch.testing.assert_close(got.tokens, want[0], rtol=1e-13, atol=1e-13)
    weights = want[0].detach().cos()
    for dx, true in zip(*(torch.autograd.grad(r[0], x, weights) for r in (got, want))):
        torch.testing.assert_close(dx, true, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("dim", "num_heads"),
    [(16, 16), (6, 2), (64, 1), (130, 2), (96, 1), (128, 1), (144, 1), (2100, 1)],
    ids=str,
)
def test_every_width_of_the_metric(backend: str, dim: int, num_heads: int) -> None:
    """One entry, a few, and more than a matrix product takes at once."""
    inputs = {"x": clusters(2, 38, dim), "num_tokens": 20, "num_heads": num_heads}
    check_contract(ours, naive_tome, inputs, wrt=("x",))


@law
@given(seqlen=st.integers(2, 60), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_choices_are_those_of_exact_arithmetic(
    backend: str, seqlen: int, share: float, seed: int
) -> None:
    """Where float64 sees a difference of 1e-6; smaller ones are below what float32 tells apart."""
    num_tokens = 1 + int(share * (seqlen - 1))
    x = torch.randn(1, seqlen, 24, generator=torch.Generator().manual_seed(seed)).to(device())
    assume(margin(x, num_tokens) > 5e-7)
    for got, want in zip(ours(x, num_tokens)[1:], naive_tome(x, num_tokens)[1:]):
        assert torch.equal(got, want)


@pytest.mark.parametrize("copies", [1, 2])
def test_the_last_bits_of_a_metric_decide(backend: str, copies: int) -> None:
    """Of two partners alike but for the order of their entries: 4e-7 of the similarity.

    Also after a round that merges each with its copy.
    """
    high, low, peak = 2**22 - 2**12, 2**11 - 1, 2**22
    a, b = high + low, high - low
    even = [a, b] * 6 + [peak, 0, 0]
    swapped, odd = [b, a] * 6 + [0, peak, 0], [a, b] * 6 + [0, 0, peak]
    rows = torch.tensor([[even, swapped, [-v for v in even], odd]], dtype=torch.float32)
    x = rows.repeat_interleave(copies, dim=1).to(device())
    got = ours(x, 3, 1).assignment
    assert torch.equal(got, naive_tome(x, 3, 1)[2])
    assert got[0, ::copies].tolist() == [2, 1, 0, 2]


def test_what_is_nearly_equal_is_not_equal(backend: str) -> None:
    """Similarities of 1 - 4.5e-6 and 1 - 2e-6: the higher one is taken, not the first."""
    x = torch.tensor([[[1, 0], [1, 3e-3], [-1, 0], [1, 2e-3]]], device=device())
    assert ours(x, 3, 1).assignment[0].tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_layouts(backend: str, layout: str) -> None:
    x = {
        "transposed": clusters(30, 2, 16).transpose(0, 1),
        "sliced": clusters(2, 60, 32)[:, ::2, 8:24],
        "expanded": clusters(1, 30, 16).expand(2, -1, -1),
    }[layout]
    check_contract(ours, naive_tome, {"x": x, "num_tokens": 7}, wrt=("x",))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_goldens(backend: str, path: Path) -> None:
    about = json.loads(path.read_text())
    golden = on_device(load_file(path.with_suffix(".safetensors")))
    num_tokens = about["target_tokens"]
    # the order by size is the same code at every length
    by_size = backend == "reference" or about["shape"][1] < 300
    orders = set(about["token_orders"]) - {"raw"} if by_size else ()
    for kind in about["cases"]:
        x = golden[f"{kind}.x"]
        raw = tome_merge(x, num_tokens)
        assert torch.equal(raw.assignment, golden[f"{kind}.raw.slot_of_source_token"])
        assert torch.equal(raw.sizes, golden[f"{kind}.raw.size"].int())
        torch.testing.assert_close(raw.tokens, golden[f"{kind}.raw.merged"], atol=1e-5, rtol=0)
        for order in orders:
            by_size = tome_merge(x, num_tokens, order=order)
            assert_same_up_to_ties(by_size, golden[f"{kind}.{order}.merged"])


def test_all_goldens_are_there() -> None:
    assert len(GOLDENS) >= 4


def assert_same_up_to_ties(result, golden: torch.Tensor) -> None:
    """Slots of equal size may be permuted: upstream sorts them unstably."""
    for tokens, sizes, want in zip(result.tokens, result.sizes, golden):
        for size in sizes.unique():
            mine, theirs = tokens[sizes == size], want[sizes == size]
            distance = (mine[:, None] - theirs[None]).abs().amax(-1)
            assert sorted(distance.argmin(1).tolist()) == list(range(len(mine)))
            assert distance.amin(1).max() < 1e-5


@law
@given(
    batch=st.integers(1, 3), seqlen=st.integers(1, 90), share=st.floats(0, 1),
    order=st.sampled_from(["raw", "ascending", "descending"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_mass_is_conserved(
    backend: str, batch: int, seqlen: int, share: float, order: str, seed: int
) -> None:
    num_tokens = 1 + int(share * (seqlen - 1))
    x = clusters(batch, seqlen, 16, seed)
    tokens, sizes, assignment = ours(x, num_tokens, order=order)
    assert tokens.shape == (batch, num_tokens, 16)
    assert (sizes.dtype, assignment.dtype) == (torch.int32, torch.int32)
    assert bool((sizes.sum(1) == seqlen).all())
    assert bool((sizes > 0).all())
    for b in range(batch):
        counts = torch.bincount(assignment[b].long(), minlength=num_tokens)
        assert torch.equal(counts, sizes[b].long())
    mass = (tokens.double() * sizes[..., None]).sum(1)
    torch.testing.assert_close(mass, x.double().sum(1), atol=1e-4, rtol=1e-5)
    if order != "raw":
        steps = sizes.diff(dim=1) * (1 if order == "ascending" else -1)
        assert bool((steps >= 0).all())


@law
@given(seqlen=st.integers(2, 40), seed=st.integers(0, 999), share=st.floats(0, 1))
def test_exact_ties_go_to_the_lower_index(
    backend: str, seqlen: int, seed: int, share: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    few = torch.randn(3, 16, generator=g)
    x = few[torch.randint(0, 3, (2, seqlen), generator=g)].to(device())
    num_tokens = 1 + int(share * (seqlen - 1))
    for got, want in zip(ours(x, num_tokens)[1:], naive_tome(x, num_tokens)[1:]):
        assert torch.equal(got, want)


def test_equal_pairs_tie_whatever_they_are(backend: str) -> None:
    """Each token's best partner is its equal: of eight such pairs the first four are merged."""
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    got = ours(x.repeat_interleave(2, dim=1).to(device()), 12, 1).assignment
    want = [4, 4, 5, 5, 6, 6, 7, 7, 0, 8, 1, 9, 2, 10, 3, 11]
    assert got.tolist() == [want, want]


def test_merged_groups_tie_with_one_of_their_tokens(backend: str) -> None:
    """Five equal tokens are one row after a round: to others it is no nearer than the sixth is."""
    g = torch.Generator().manual_seed(3)
    distinct = torch.randn(9, 5, 16, generator=g)
    # round 1: even tokens join their equal; round 2: whoever is left joins the first token of kind 4
    even, odd = [4, 0, 4, 1, 4, 2, 3, 4], [0, 4, 1, 4, 2, 4, 3, 4]
    kinds = torch.tensor([even, odd]).T.flatten()
    got = ours(distinct[:, kinds].to(device()), 4, 1).assignment
    want = [0] * 16
    want[7], want[11], want[15] = 1, 2, 3
    assert torch.equal(got.cpu(), torch.tensor(want, dtype=torch.int32).expand(9, -1))


def test_equal_tokens_tie_at_every_position(backend: str) -> None:
    """A matrix product may round equal dot products differently in its last columns."""
    seqlen = 729 if backend == "reference" else 301
    g = torch.Generator().manual_seed(0)
    general = torch.randn(128, generator=g).expand(1, seqlen, 128).to(device())
    ones = torch.ones(1, seqlen, 128, device=device())
    first, second = (ours(x.contiguous(), 16).assignment for x in (general, ones))
    assert torch.equal(first, second)
    # after one round it still shows which of the equal partners was taken
    once = ours(ones, seqlen - seqlen // 2).assignment
    assert torch.equal(once, naive_tome(ones[..., :16], seqlen - seqlen // 2)[2])


@law
@given(seqlen=st.integers(1, 30), order=st.sampled_from(["raw", "ascending", "descending"]))
def test_nothing_to_merge_returns_the_input(backend: str, seqlen: int, order: str) -> None:
    x = clusters(2, seqlen, 16).bfloat16()
    tokens, sizes, assignment = ours(x, seqlen, order=order)
    assert torch.equal(tokens, x)
    assert torch.equal(sizes.cpu(), torch.ones(2, seqlen, dtype=torch.int32))
    assert torch.equal(assignment.cpu(), torch.arange(seqlen, dtype=torch.int32).expand(2, -1))


@pytest.mark.parametrize("shape", [(0, 9, 16), (2, 9, 0)], ids=str)
def test_no_rows_and_no_channels(backend: str, shape: tuple[int, ...]) -> None:
    """Without channels every similarity is 0, as it is of zero vectors."""
    x = torch.zeros(shape, device=device(), requires_grad=True)
    tokens, sizes, assignment = ours(x, 4)
    assert tokens.shape == (shape[0], 4, shape[2])
    _, want_sizes, want_assignment = naive_tome(torch.zeros(2, 9, 16, device=device()), 4)
    assert torch.equal(sizes, want_sizes[: shape[0]])
    assert torch.equal(assignment, want_assignment[: shape[0]])
    (dx,) = torch.autograd.grad(tokens.sum(), x)
    assert dx.shape == x.shape


def test_zero_vectors_are_similar_to_nothing(backend: str) -> None:
    x = clusters(2, 21, 16)
    x[:, ::3] = 0
    got = ours(x, 6)
    want = naive_tome(x, 6)
    assert torch.equal(got.assignment, want[2])
    assert bool(torch.isfinite(got.tokens).all())
    assert bool((ours(torch.zeros(1, 20, 16, device=device()), 3).tokens == 0).all())


def test_a_zero_vector_is_better_than_an_opposite(backend: str) -> None:
    """As an even token, and as an odd one."""
    even = [[1, 0], [-1, 0.1], [0, 0], [-1, 0.2]]
    odd = [[1, 0], [-1, 0.1], [0, -1], [0, 0]]
    got = ours(torch.tensor([even, odd], device=device()), 3, 1)
    assert got.assignment.tolist() == [[0, 1, 1, 2], [2, 1, 0, 2]]


def test_rows_are_independent(backend: str) -> None:
    x = clusters(3, 45, 16)
    together = ours(x, 8)
    for b in range(3):
        for whole, single in zip(together, ours(x[b : b + 1], 8)):
            assert torch.equal(whole[b : b + 1], single)


def test_blocks_of_similarities_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clusters(2, 101, 16)
    whole = ours(x, 9)
    monkeypatch.setattr("tvkernels.tome.reference.SCORE_BLOCK", 300)
    for a, b in zip(whole, ours(x, 9)):
        assert torch.equal(a, b)


def test_memory_is_linear_in_seqlen() -> None:
    def elements(seqlen: int) -> int:
        x = torch.randn(1, seqlen, 32)
        return largest_tensor(lambda: ours(x, seqlen // 2))

    assert elements(8192) <= 2 * elements(4096)
    # the whole similarity matrix would have 4096 ** 2 entries
    assert elements(8192) < 4096**2 // 8


def test_the_wide_tokens_are_not_copied() -> None:
    x = torch.randn(4, 729, 1152, requires_grad=True)
    assert largest_tensor(lambda: tome_merge(x, 16)) < x.numel() // 4


def test_compiles_whole() -> None:
    x = clusters(2, 51, 16)
    compiled = torch.compile(lambda t: ours(t, 9), fullgraph=True, backend="eager")
    for a, b in zip(compiled(x), ours(x, 9)):
        assert torch.equal(a, b)


def test_meta_tensors_carry_shapes() -> None:
    got = tome_merge(torch.empty(2, 729, 1152, dtype=torch.bfloat16, device="meta"), 16)
    assert [(tuple(t.shape), t.dtype) for t in got] == [
        ((2, 16, 1152), torch.bfloat16),
        ((2, 16), torch.int32),
        ((2, 729), torch.int32),
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"x": torch.ones(9, 16)},
            r"tome_merge: x must be \(batch, seqlen, dim\), got shape \(9, 16\)",
        ),
        (
            {"x": torch.ones(1, 9, 16).long()},
            "tome_merge: x must be of dtype float32, .*, got int64",
        ),
        ({"num_tokens": 10}, "num_tokens must be an int between 1 and seqlen 9 .*, got 10"),
        ({"num_tokens": 3.0}, "num_tokens must be an int between 1 and seqlen 9 .*, got 3.0"),
        ({"x": [1.0]}, "x must be a tensor, got a list"),
        ({"num_tokens": 0}, "num_tokens must be an int between 1 and seqlen 9 .*, got 0"),
        ({"num_heads": 3}, r"num_heads must divide dim 16 \(.*\), got 3"),
        ({"num_heads": 0}, "num_heads must be an int of at least 1, got 0"),
        ({"order": "sorted"}, "order must be one of raw, ascending, descending, got 'sorted'"),
    ],
)
def test_errors(change: dict, sentence: str) -> None:
    arguments = {"x": torch.ones(1, 9, 16), "num_tokens": 4, **change}
    with pytest.raises(ValueError, match=sentence):
        tome_merge(**arguments)
