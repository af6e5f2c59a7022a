"""The kernel of compact: configurations, offsets, operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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
from tests.interpreter import lazily, poisoned_empty
from tests.ops.compact.common import everything, inputs, naive
from tvkernels import use_backend
from tvkernels.compact import CompactResult, compact

CONFIGS = every_config("tvkernels.compact.kernel:compact_kernel")


@pytest.mark.triton
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config(config: Any) -> None:
    from tvkernels.core.tune import forced

    # more channels than one step of a program has
    with use_backend("triton"), poisoned_empty(), forced(config):
        check_contract(everything, naive, inputs(dim=600), wrt=["x"])


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
@pytest.mark.parametrize("which", ["x", "positions"])
def test_offsets_beyond_32_bits(which: str) -> None:
    with use_backend("triton"):
        given = {name: value[:1] for name, value in inputs(seqlen=5, dim=4).items()}
        given["x"], given["positions"] = given["x"].half(), (given["positions"] % 1000).int()
        # the stride fits 32 bits, so only a 64-bit row index avoids the overflow
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
