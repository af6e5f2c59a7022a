"""tome_merge on Triton: configurations, programs that work in turn, repeats, offsets, operators."""

from __future__ import annotations

import inspect
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.contract import (
    COMPILED,
    TRITON,
    assert_alike,
    check_capture,
    check_contract,
    compilers,
    device,
    every_config,
)
from tests.interpreter import fenced_empty, lazily, poisoned_empty
from tests.ops.tome.common import clusters, naive_tome, ours
from tvkernels import use_backend
from tvkernels.tome import ToMeResult
from tvkernels.tome.op import _merge_bwd, _merge_fwd

on_triton = pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU")
pytestmark = [pytest.mark.triton, on_triton]
KERNELS = [
    "tvkernels.tome.match_kernel:match_kernel",
    "tvkernels.tome.kernel:mean_kernel",
    "tvkernels.tome.kernel:spread_kernel",
]


@pytest.fixture(autouse=True)
def _backend() -> Any:
    with use_backend("triton"), poisoned_empty():
        yield


def by_reference(
    x: torch.Tensor, num_tokens: int, num_heads: int = 4, order: str = "raw"
) -> ToMeResult:
    with use_backend("reference"):
        return ours(x, num_tokens, num_heads, order)


def assert_same_choices(got: ToMeResult, want: ToMeResult) -> None:
    assert torch.equal(got.sizes, want.sizes)
    assert torch.equal(got.assignment, want.assignment)


@pytest.mark.parametrize("config", every_config(*KERNELS[:1]), ids=str)
def test_every_configuration_of_the_matching(config: Any) -> None:
    """Even tokens, odd tokens and the channels of the metric each fill more than one tile."""
    from tvkernels.core.tune import forced

    x = clusters(1, 277, 72)
    with forced(config):
        assert_same_choices(ours(x, 130, 1), by_reference(x, 130, 1))


@pytest.mark.parametrize("config", every_config(*KERNELS[1:]), ids=str)
@pytest.mark.parametrize("num_tokens", [9, 33])
def test_every_configuration_of_the_means(config: Any, num_tokens: int) -> None:
    """One program averages all slots, or several average sorted tokens; channels exceed one strip."""
    from tvkernels.core.tune import forced

    inputs = {"x": clusters(2, 70, 520), "num_tokens": num_tokens}
    with forced(config):
        check_contract(ours, naive_tome, inputs, dtype=torch.bfloat16, wrt=("x",))


@pytest.mark.parametrize("least", [1024, 150])
@pytest.mark.parametrize(
    ("seqlen", "num_tokens", "order"),
    [(257, 129, "ascending"), (258, 129, "descending"), (257, 225, "raw")],
)
def test_the_last_of_a_tile_of_its_own_counts(
    seqlen: int, num_tokens: int, order: str, least: int
) -> None:
    """257 tokens and 129 or 33 rows are one more than tiles of a power of two hold.

    With several programs for one group, each phase is shared, and no token is moved twice.
    """
    x = clusters(1, seqlen, 16)
    # the last token is the best match of a token of the other parity
    x[:, -1] = x[:, seqlen % 2]
    want = by_reference(x, num_tokens, 4, order)
    with patch("tvkernels.tome.kernel.LONG", least):
        assert_same_choices(ours(x, num_tokens, 4, order), want)


def test_programs_take_groups_in_turn() -> None:
    """The scratch memory that a program reuses for its next group does not leak into it."""
    x = clusters(5, 45, 16)
    with patch("tvkernels.tome.kernel._programs", lambda _: 2):
        assert_same_choices(ours(x, 8), by_reference(x, 8))


@pytest.mark.parametrize("num_tokens", [9, 60, 199])
def test_long_groups_are_shared_among_programs(num_tokens: int) -> None:
    """Several programs choose as one does, in some rounds, in all, and in one that merges one token."""
    x = clusters(2, 200, 72)
    want = by_reference(x, num_tokens, 1)
    with patch("tvkernels.tome.kernel.LONG", 50), patch("tvkernels.tome.kernel.PROGRAMS", 5):
        assert_same_choices(ours(x, num_tokens, 1), want)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(("num_tokens", "order"), [(9, "ascending"), (33, "descending")])
def test_nothing_is_written_beside_what_is_asked_for(
    num_tokens: int, order: str, long: bool
) -> None:
    """Programs keep to their own scratch: equal groups leave equal bits in it, unwritten bits included."""
    from tvkernels.tome.kernel import merge_backward, merge_forward

    made = []

    def kept(*shape: int, **form: Any) -> torch.Tensor:
        made.append(empty(*shape, **form))
        return made[-1]

    # rows narrower than their lanes, fewer than a tile
    x = clusters(1, 45, 72).expand(2, -1, -1)
    least, programs = (30, 5) if long else (1024, 2)
    with fenced_empty():
        empty = torch.empty
        with (
            patch("tvkernels.tome.kernel.LONG", least),
            patch("tvkernels.tome.kernel.PROGRAMS", programs),
            patch("torch.empty", kept),
        ):
            tokens, sizes, slots = merge_forward(x, num_tokens, 1, order)
            merge_backward(tokens, slots, sizes)
    assert len(made) == 10
    for tensor in made:
        first, second = tensor.view(torch.uint8).view(tensor.numel(), -1).chunk(2)
        assert torch.equal(first, second), tensor.shape
    assert_same_choices(ToMeResult(tokens, sizes, slots), by_reference(x, num_tokens, 1, order))


def test_a_token_that_is_no_number_stays_in_its_row() -> None:
    x = clusters(3, 45, 16)
    spoilt = x.clone()
    spoilt[1, 7, 3], spoilt[1, 20], spoilt[1, 31, 0] = torch.nan, torch.inf, -torch.inf
    got, want = ours(spoilt, 8), ours(x, 8)
    for g, w in zip(got, want):
        assert torch.equal(g[::2], w[::2])
    counts = torch.bincount(got.assignment[1].long(), minlength=8)
    assert torch.equal(counts.int(), got.sizes[1])


@pytest.mark.parametrize(
    ("dtype", "factors"),
    [(torch.float32, (2.0**-120, 2.0**110)), (torch.float64, (2.0**-950, 2.0**1005))],
    ids=str,
)
def test_magnitudes_play_no_part(dtype: torch.dtype, factors: tuple[float, float]) -> None:
    """Choices do not depend on scale, also near the limits of the dtype, where a square overflows."""
    x = clusters(1, 45, 16).to(dtype)
    want = ours(x, 8)
    for factor in factors:
        assert_same_choices(ours(x * factor, 8), want)


@pytest.mark.parametrize("peak", [torch.finfo(torch.float32).max, 1.0, 2.0**-60])
def test_a_float32_that_is_merged_with_nothing_keeps_its_bits(peak: float) -> None:
    """The largest too, which rounded to 16 bits would be inf."""
    x = clusters(2, 40, 48)
    x = torch.where(x.abs() > x.abs().mean(), torch.finfo(x.dtype).eps * x, x)
    x = x / x.abs().amax(-1, keepdim=True) * peak
    tokens, sizes, slots = ours(x, 33, 48)
    alone = sizes.gather(1, slots.long()) == 1
    assert int(alone.sum()) >= 2 * 26
    got = tokens.gather(1, slots.long()[..., None].expand(-1, -1, 48))
    assert_alike(got[alone], x[alone], rounding=COMPILED)


def every_result(x: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Forward and backward."""
    result = ours(x, 20, order="descending")
    return [*result, *torch.autograd.grad(result.tokens, x, weights)]


def given(dtype: torch.dtype) -> list[torch.Tensor]:
    """x, and the cotangent of the tokens."""
    return [clusters(3, 60, 48).to(dtype).requires_grad_(), clusters(3, 20, 48, seed=1).to(dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(dtype: torch.dtype) -> None:
    once, again = every_result(*given(dtype)), every_result(*given(dtype))
    assert all(torch.equal(a, b) for a, b in zip(once, again))


def test_operators_are_sound() -> None:
    x = clusters(2, 40, 16)
    for num_tokens in (5, 30):
        torch.library.opcheck(_merge_fwd.op, (x, num_tokens, 4, "raw"))
        tokens, sizes, slots = _merge_fwd(x, num_tokens, 4, "raw")
        torch.library.opcheck(_merge_bwd.op, (tokens, slots, sizes))


def test_compiles_in_one_graph_with_its_backward() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        tokens, sizes, _ = ours(2 * x, 9)
        return (tokens * sizes[..., None]).square().sum()

    x = clusters(2, 51, 16).requires_grad_()
    (want,) = torch.autograd.grad(step(x), x)
    for compiler in compilers():
        torch._dynamo.reset()
        (got,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend=compiler)(x), x)
        assert_alike(got, want, rounding=compiler == "inductor")


def test_second_order_gradients_say_that_they_are_absent() -> None:
    x = clusters(1, 30, 16).requires_grad_()
    (first,) = torch.autograd.grad(ours(x, 7).tokens.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="only first order gradients, got a second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("far", ["batch", "token", "channel"])
def test_offsets_past_32_bits(far: str) -> None:
    """The stride itself fits 32 bits, so that only its product with an index does not."""
    stride = {"batch": (3 * 2**29, 16, 1), "token": (16, 2**28, 1), "channel": (160, 16, 2**28)}
    shape, strides = {"batch": (3, 9, 16), "token": (1, 9, 16), "channel": (1, 9, 16)}, stride[far]
    x = clusters(*shape[far]).bfloat16()
    distant = lazily(shape[far], strides, torch.bfloat16, device()).copy_(x)
    for got, want in zip(ours(distant, 4), ours(x, 4)):
        assert_alike(got, want, rounding=COMPILED)
    # on a GPU it takes real memory
    del distant
    _, sizes, slots = ours(x, 4)
    dtokens = clusters(*shape[far])[:, :4].bfloat16()
    # four slots, not nine tokens
    strides = (16, 2**30, 1) if far == "token" else strides
    distant = lazily(tuple(dtokens.shape), strides, torch.bfloat16, device()).copy_(dtokens)
    got, want = (_merge_bwd(t, slots, sizes) for t in (distant, dtokens))
    assert_alike(got, want, rounding=COMPILED)


class Apart:
    """A kernel of the matching, with the rows of its two programs 2^31 entries apart."""

    def __init__(self, kernel: Any, rows: torch.Tensor) -> None:
        self.kernel, self.rows = kernel, rows
        while hasattr(kernel, "fn"):
            kernel = kernel.fn
        self.names = list(inspect.signature(kernel).parameters)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            given = dict(zip(self.names, args))
            given["scratch_rows"] = 2**31 // given["rows_ptr"][0, 0].numel()
            given["rows_ptr"] = self.rows
            self.kernel[grid](*given.values(), **kwargs)

        return launch


@pytest.mark.parametrize("long", [False, True])
def test_scratch_past_32_bits(long: bool) -> None:
    from tvkernels.tome.kernel import match_kernel
    from tvkernels.tome.round_kernel import round_kernel

    x = clusters(2, 45, 16)
    want = by_reference(x, 8)
    rows = lazily((2, 2**31), (2**31, 1), torch.float16, device())
    room = "tvkernels.tome"
    with (
        patch(f"{room}.kernel.LONG", 30 if long else 1024),
        patch(f"{room}.kernel.match_kernel", Apart(match_kernel, rows)),
        patch(f"{room}.round_kernel.round_kernel", Apart(round_kernel, rows)),
    ):
        assert_same_choices(ours(x, 8), want)
    assert all(bool(rows[b, :4096].any()) for b in range(2))


@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_a_cuda_graph_captures_it() -> None:
    inputs = given(torch.bfloat16)
    check_capture(lambda: every_result(*inputs))


@pytest.mark.skipif(not COMPILED, reason="no GPU")
def test_real_frames_repeat_bitwise() -> None:
    """Thousands of groups, each scratch used many times: what a missing barrier would change."""
    x = torch.randn(2048, 729, 1152, device=device(), dtype=torch.bfloat16)
    first = ours(x, 16, 16)
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(ours(x, 16, 16), first))
    alone = [ours(x[b : b + 1], 16, 16) for b in (0, 1, 1023, 2047)]
    for b, single in zip((0, 1, 1023, 2047), alone):
        assert all(torch.equal(whole[b : b + 1], part) for whole, part in zip(first, single))
