"""Rows out of a sequence: against lists, its gradients, its laws, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract import (
    COMPILED,
    TRITON,
    check_capture,
    check_contract,
    compilers,
    device,
    every_config,
)
from tests.footprint import largest_tensor
from tests.interpreter import INTERPRETED, lazily, poisoned_empty
from tvkernels import use_backend
from tvkernels.compact import CompactResult, compact

law = settings(
    max_examples=6 if INTERPRETED else 25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
CONFIGS = every_config("tvkernels.compact.kernel:compact_kernel")


def naive(
    x: torch.Tensor, dropped: torch.Tensor, positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Row by row: each goes to the end of one of two lists."""
    parts: tuple[list[Any], ...] = ([], [], [])
    for b, leaving in enumerate(dropped.tolist()):
        stays = [t for t in range(x.shape[1]) if t not in leaving]
        parts[0].append(x[b, stays])
        parts[1].append(x[b, leaving])
        parts[2].append(stays if positions is None else positions[b, stays].tolist())
    kept, rest = torch.stack(parts[0]), torch.stack(parts[1])
    return kept, rest, torch.tensor(parts[2], dtype=torch.int64, device=x.device)


def everything(
    x: torch.Tensor, dropped: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return tuple(compact(x, dropped, positions, return_dropped=True))  # type: ignore[arg-type]


def inputs(seqlen: int = 75, dim: int = 37, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two sequences, each without a third of its rows; a run of neighbours leaves too."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, seqlen, dim, generator=g)
    dropped = torch.stack([torch.randperm(seqlen, generator=g)[: seqlen // 3] for _ in range(2)])
    positions = torch.randint(0, 10**12, (2, seqlen), generator=g)
    found = {"x": x, "dropped": dropped.sort(1).values, "positions": positions}
    return {name: value.to(device()) for name, value in found.items()}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_contract(dtype: torch.dtype) -> None:
    check_contract(everything, naive, inputs(), dtype=dtype, wrt=["x"])


@pytest.mark.triton
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config(config: Any) -> None:
    from tvkernels.core.tune import forced

    # more channels than one step of a program has
    with use_backend("triton"), poisoned_empty(), forced(config):
        check_contract(everything, naive, inputs(dim=600), wrt=["x"])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_strides(layout: str) -> None:
    given = inputs()
    x, dropped = given["x"], given["dropped"]
    given["x"] = {
        "transposed": lambda: x.mT.contiguous().mT,
        "sliced": lambda: torch.cat([x, x], -1)[:, :, 1:38],
        "expanded": lambda: x[:1].expand(2, -1, -1),
    }[layout]()
    # `clone` keeps the order of the strides, `contiguous` does not
    apart = dropped.mT.contiguous().mT
    given["dropped"] = dropped[:1].expand(2, -1) if layout == "expanded" else apart
    given["positions"] = given["positions"].int().mT.contiguous().mT
    got = compact(**given, return_dropped=True)
    assert got.positions is not None
    assert got.positions.dtype == torch.int32
    check_contract(everything, naive, {**given, "positions": inputs()["positions"]}, wrt=["x"])
    assert torch.equal(got.positions, naive(**given)[2].int())
    assert all(part.is_contiguous() for part in got if part is not None)


@pytest.mark.usefixtures("backend")
@law
@given(
    seqlen=st.integers(0, 70), dim=st.integers(0, 20), share=st.floats(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_what_stays_and_what_leaves_are_all_rows(
    seqlen: int, dim: int, share: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    leaving = torch.randperm(seqlen, generator=g)[: int(seqlen * share)].sort().values
    # the value of a row is its number
    x = torch.arange(float(seqlen)).repeat(2, 1)[..., None].repeat(1, 1, dim).to(device())
    got = compact(x, leaving.repeat(2, 1).to(device()), return_dropped=True)
    assert got.positions is None
    assert got.dropped is not None
    assert got.kept.shape == (2, seqlen - len(leaving), dim)
    if dim:
        assert torch.equal(got.dropped[1, :, 0].long().cpu(), leaving)
        rest = sorted(set(range(seqlen)) - set(leaving.tolist()))
        assert got.kept[0, :, -1].tolist() == rest


@pytest.mark.usefixtures("backend")
def test_a_gradient_that_nobody_asked_for_is_zero() -> None:
    given = inputs()
    x = given["x"].requires_grad_()
    kept, dropped, positions = compact(x, given["dropped"])
    assert (dropped, positions) == (None, None)
    kept.sum().backward()
    want = torch.ones_like(x).scatter_(1, given["dropped"][..., None].expand(-1, -1, 37), 0)
    assert torch.equal(x.grad, want)
    # of the rows that leave alone, too
    (only,) = torch.autograd.grad(compact(x, given["dropped"], return_dropped=True)[1].sum(), x)
    assert torch.equal(only, 1 - want)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_a_list_that_does_not_ascend_moves_nothing_elsewhere() -> None:
    """On a device nobody can look at it."""
    from tvkernels.compact.kernel import compact_forward

    with use_backend("triton"):
        x, n = inputs()["x"], 25
        for wrong in (-(2**40), 2**40):
            dropped = torch.full((2, n), wrong, device=x.device)
            dropped[:, 7] = 3
            kept, rest, _ = compact_forward(x, dropped, None, True)
            assert (kept.shape, rest.shape) == ((2, 50, 37), (2, 25, 37))


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_an_index_beyond_the_end_takes_no_row() -> None:
    """Of what lies there: the rows of another tensor."""
    from tvkernels.compact.kernel import compact_forward

    whole = inputs()["x"]
    dropped = torch.arange(25, device=whole.device).expand(2, -1).clone()
    dropped[:, -1] = 60
    with use_backend("triton"), poisoned_empty():
        _, rest, _ = compact_forward(whole[:, :60], dropped, None, True)
    assert torch.equal(rest[:, :24], whole[:, :24])
    assert bool(rest[:, 24].isnan().all())


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("which", ["x", "positions"])
def test_offsets_beyond_32_bits(which: str) -> None:
    with use_backend("triton"):
        given = {name: value[:1] for name, value in inputs(seqlen=5, dim=4).items()}
        given["x"], given["positions"] = given["x"].half(), (given["positions"] % 1000).int()
        # a stride that fits 32 bits, so that the row has to be what is wide
        strides = (1, 5 * 2**27, 1)[: given[which].ndim]
        mine = lazily(given[which].shape, strides, given[which].dtype, device())
        mine.copy_(given[which])
        got = compact(**{**given, which: mine}, return_dropped=True)
    for ours, want in zip(got, naive(**given)):
        assert torch.equal(ours, want.to(ours.dtype))


@pytest.mark.usefixtures("backend")
def test_two_runs_give_the_same_bits_and_torch_can_see_through() -> None:
    given = inputs()

    def both(x: torch.Tensor, dropped: torch.Tensor, positions: torch.Tensor) -> Any:
        x = x.detach().requires_grad_()
        kept, rest, moved = compact(x, dropped, positions, return_dropped=True)
        (dx,) = torch.autograd.grad((kept * kept).sum() + rest.sum(), x)
        return kept, rest, moved, dx

    once, again = both(**given), both(**given)
    assert all(torch.equal(a, b) for a, b in zip(once, again))
    x = given["x"].requires_grad_()
    for compiler in compilers():
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda x, d, p: tuple(compact(x, d, p, return_dropped=True)),
            fullgraph=True, backend=compiler,
        )  # fmt: skip
        got = compiled(x, given["dropped"], given["positions"])
        assert all(torch.equal(a, b) for a, b in zip(got, once))
        (dx,) = torch.autograd.grad((got[0] * got[0]).sum() + got[1].sum(), x)
        assert torch.equal(dx, once[3])


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_opcheck() -> None:
    from tvkernels.compact.op import _compact_bwd, _compact_fwd

    with use_backend("triton"):
        given = inputs()
        x, dropped, positions = given["x"], given["dropped"], given["positions"]
        kept, rest, _ = _compact_fwd(x, dropped, positions, True)
        torch.library.opcheck(_compact_fwd.op, (x, dropped, positions, True))
        torch.library.opcheck(_compact_fwd.op, (x, dropped, None, False))
        torch.library.opcheck(_compact_bwd.op, (kept, rest, dropped))
        torch.library.opcheck(_compact_bwd.op, (kept, None, dropped))


@pytest.mark.triton
@pytest.mark.skipif(not COMPILED, reason="no GPU: nothing to capture")
def test_a_graph_captures_it() -> None:
    with use_backend("triton"):
        given = inputs()
        check_capture(lambda: everything(**given))


@pytest.mark.parametrize("seqlen", [1000, 4000])
def test_nothing_is_larger_than_what_stays(seqlen: int) -> None:
    x, dropped = torch.randn(1, seqlen, 8), torch.arange(seqlen // 2)[None]
    assert largest_tensor(lambda: compact(x, dropped)) == x[:, : seqlen // 2].numel()


def test_meta_tensors_carry_shapes() -> None:
    x = torch.empty(2, 500, 64, dtype=torch.bfloat16, device="meta")
    dropped = torch.empty(2, 30, dtype=torch.int64, device="meta")
    got = compact(x, dropped, torch.empty(2, 500, dtype=torch.int32, device="meta"))
    assert isinstance(got, CompactResult)
    assert got.dropped is None
    assert (got.kept.shape, got.positions.shape) == ((2, 470, 64), (2, 470))


X, D = torch.ones(2, 9, 4), torch.tensor([[1, 5], [0, 8]])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.ones(9, 4)}, r"compact: x must be \(batch, seqlen, dim\), got shape \(9, 4\)"),
        ({"x": torch.ones(2, 9, 4).int()}, "x must be of dtype float32, .*, got int32"),
        ({"dropped": D[:1]}, r"dropped must be \(batch, n\) = \(2, any\), got shape \(1, 2\)"),
        ({"dropped": D.int()}, "dropped must be of dtype int64, got int32"),
        (
            {"dropped": torch.arange(10).repeat(2, 1)},
            "dropped must hold at most the 9 rows of x, got 10",
        ),
        (
            {"dropped": torch.tensor([[5, 1], [0, 8]])},
            r"dropped must ascend, got 5, then 1$",
        ),
        ({"dropped": torch.tensor([[1, 1], [0, 8]])}, r"dropped must ascend, got 1, then 1$"),
        (
            {"dropped": torch.tensor([[-1, 1], [0, 8]])},
            r"dropped must lie within \[0, 9\), got -1 to 8$",
        ),
        (
            {"dropped": torch.tensor([[1, 5], [0, 9]])},
            r"dropped must lie within \[0, 9\), got 0 to 9$",
        ),
        (
            {"positions": torch.zeros(2, 8).long()},
            r"positions must be \(batch, seqlen\) = \(2, 9\), got shape \(2, 8\)",
        ),
        ({"positions": torch.zeros(2, 9)}, "positions must be of dtype int32, int64, got float32"),
        (
            {"dropped": D.to("meta")},
            r"dropped must lie on the device of x \(cpu\), got meta",
        ),
    ],
)
def test_errors(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        compact(**{"x": X, "dropped": D, **change})
