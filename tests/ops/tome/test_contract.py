"""tome_merge against recorded results of upstream and a float64 form that merges step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.contract import check_contract, device, on_device
from tests.footprint import largest_tensor
from tests.ops.common import DATA
from tests.ops.tome.common import clusters, law, naive_row, naive_tome, ours
from tvkernels.tome import tome_merge

GOLDENS = sorted(DATA.glob("tome_*.json"))


def margin(x: torch.Tensor, num_tokens: int, num_heads: int = 4) -> float:
    """How much similarities may be off before any choice in float64 could turn out differently."""
    gaps = [2.0]
    for row in x:
        naive_row(row, num_tokens, num_heads, gaps)
    return min(gaps) / 2


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
    """The contract's tolerance for float64 is that of float32, so this test asks for more."""
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
    """One entry, a few entries, and more than one step of the product loads."""
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
    """Two partners have the same entries in another order, and similarities that differ by 4e-7.

    With copies = 2 they first pass a round that merges each with its copy.
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
