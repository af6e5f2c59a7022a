"""Rows taken out of a sequence: against lists, with gradients, strides and laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract import (
    TRITON,
    check_contract,
    device,
)
from tests.interpreter import INTERPRETED, poisoned_empty
from tests.ops.compact.common import everything, inputs, naive
from tvkernels import use_backend
from tvkernels.compact import compact

law = settings(
    max_examples=6 if INTERPRETED else 25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_contract(dtype: torch.dtype) -> None:
    check_contract(everything, naive, inputs(), dtype=dtype, wrt=["x"])


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
    # and the gradient of the dropped rows alone
    (only,) = torch.autograd.grad(compact(x, given["dropped"], return_dropped=True)[1].sum(), x)
    assert torch.equal(only, 1 - want)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
def test_a_list_that_does_not_ascend_moves_nothing_elsewhere() -> None:
    """The host cannot check an index list on a device, so the kernel must stay within its tensors."""
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
    """Behind the end lie the rows of another tensor, which must not be copied."""
    from tvkernels.compact.kernel import compact_forward

    whole = inputs()["x"]
    dropped = torch.arange(25, device=whole.device).expand(2, -1).clone()
    dropped[:, -1] = 60
    with use_backend("triton"), poisoned_empty():
        _, rest, _ = compact_forward(whole[:, :60], dropped, None, True)
    assert torch.equal(rest[:, :24], whole[:, :24])
    assert bool(rest[:, 24].isnan().all())
