"""Laws of tome_merge: conserved mass, ties, zero vectors, independent rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import device
from tests.ops.tome.common import clusters, law, naive_tome, ours


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
    """A merged row of five equal tokens is as similar to others as the sixth equal token is."""
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
    """Checked once as an even token and once as an odd token."""
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
