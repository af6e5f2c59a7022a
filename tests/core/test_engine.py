"""The interpreter's arithmetic, the device functions that ops share, the choice of configurations.

They need Triton, interpreted or compiled; of a machine with neither they say so.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from tests.contract import TRITON
from tests.interpreter import (
    INTERPRETED,
    fenced_empty,
    from_bits,
    lazily,
    poisoned_empty,
    to_bits,
)

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU"),
]

if TRITON:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from tvkernels.core import tl as shared
    from tvkernels.core.tune import Tuned, forced, tuned

    DEVICE = "cpu" if INTERPRETED else "cuda"

    @triton.jit
    def unary_kernel(x_ptr, y_ptr, n, NAME: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n, other=0.0)
        if NAME == "sigmoid":
            y = shared.sigmoid(x)
        elif NAME == "silu":
            y = shared.silu(x)
        elif NAME == "silu_slope":
            y = shared.silu_slope(x)
        elif NAME == "softplus":
            y = shared.softplus(x)
        else:
            y = x
        tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=i < n)

    @triton.jit
    def arithmetic_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
        i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
        a, b = tl.load(a_ptr + i), tl.load(b_ptr + i)
        tl.store(out_ptr + i, tl.dot(a, b))
        tl.store(out_ptr + N * N + i, (a + b).to(tl.float32))
        tl.store(out_ptr + 2 * N * N + i, (a * b).to(tl.float32))
        tl.store(out_ptr + 3 * N * N + i, tl.where(a < b, 1.0, 0.0))
        tl.store(out_ptr + 4 * N * N + i, tl.abs(a).to(tl.float32))

    @triton.jit
    def unmasked_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < 2))

    CONFIGS = [triton.Config({"BLOCK": size}, num_warps=4) for size in (16, 32)]
    LISTS = {"sm_90": CONFIGS[1:], "default": CONFIGS[:1]}

    @tuned(LISTS, key=["FIXED"])
    @triton.jit
    def block_kernel(y_ptr, FIXED: tl.constexpr, BLOCK: tl.constexpr):
        tl.store(y_ptr, BLOCK)

    # as on a GPU, also where the run interprets
    @tuned(CONFIGS, key=["FIXED"], repeatable="FRESH")
    @JITFunction
    def adding_kernel(y_ptr, FIXED: tl.constexpr, FRESH: tl.constexpr, BLOCK: tl.constexpr):
        tl.atomic_add(y_ptr, BLOCK)


def unary(name: str, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=DEVICE)
    unary_kernel[(triton.cdiv(x.numel(), 1024),)](x.to(DEVICE), y, x.numel(), NAME=name, BLOCK=1024)
    return y.cpu()


def every_bfloat16() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def test_bits_of_every_bfloat16_survive() -> None:
    bits = every_bfloat16()
    again = to_bits(from_bits(bits))
    nan = np.isnan(from_bits(bits))
    assert (again[~nan] == bits[~nan]).all()
    assert np.isnan(from_bits(again[nan])).all()


def test_float32_to_bfloat16_rounds_as_torch_does() -> None:
    values = torch.from_numpy(from_bits(every_bfloat16()).copy())
    values = values[torch.isfinite(values)]
    for step in (1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        between = (values.view(torch.int32) + step).view(torch.float32)
        got = unary("copy", between, torch.bfloat16)
        assert torch.equal(got, between.to(torch.bfloat16))
        if INTERPRETED:
            expected = between.to(torch.bfloat16).view(torch.uint16).numpy()
            assert (to_bits(between.numpy()) == expected).all()


def test_float32_to_float16_rounds_as_torch_does() -> None:
    values = torch.arange(1 << 15, dtype=torch.int32) * 4096 + 0x38000000
    x = (values + 0x1000).view(torch.float32)
    assert torch.equal(unary("copy", x, torch.float16), x.half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_arithmetic(dtype: torch.dtype) -> None:
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    a, b = a.to(dtype), b.to(dtype)
    out = torch.empty(5, 16, 16, device=DEVICE)
    arithmetic_kernel[(1,)](a.to(DEVICE), b.to(DEVICE), out, N=16)
    dot, total, product, less, absolute = out.cpu()
    # tf32 on a GPU: ten bits of mantissa
    bound = 2e-2 if DEVICE == "cuda" and dtype == torch.float32 else 1e-5
    torch.testing.assert_close(dot, a.float() @ b.float(), atol=bound, rtol=bound)
    assert torch.equal(total, (a + b).float())
    assert torch.equal(product, (a * b).float())
    assert torch.equal(less, (a < b).float())
    assert torch.equal(absolute, a.abs().float())


@pytest.mark.skipif(not INTERPRETED, reason="what a GPU reads there is anything")
def test_lanes_that_are_off_are_nan() -> None:
    y = torch.empty(4)
    unmasked_kernel[(1,)](torch.ones(4), y, BLOCK=4)
    assert y.isnan().tolist() == [False, False, True, True]


FUNCTIONS: dict[str, Any] = {
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "silu_slope": lambda x: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))),
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_device_functions(name: str) -> None:
    x = torch.cat([torch.linspace(-30, 30, 999), torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])])
    y, truth = unary(name, x), FUNCTIONS[name](x.double())
    # relative where the value is not lost below float32: exp(-30) counts, exp(-100) need not
    assert torch.all((y - truth).abs() <= 2e-6 * truth.abs() + 1e-30 + 1e-6 * (x.abs() < 2))
    assert torch.isfinite(y).all()


def launched_block() -> int:
    y = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    block_kernel[(1,)](y, FIXED=1)
    return int(y)


def test_a_forced_config_runs_and_ends() -> None:
    before = launched_block()
    for config in block_kernel.shipped():
        with forced(config):
            assert launched_block() == config.kwargs["BLOCK"]
    assert launched_block() == before


def test_a_config_of_another_kernel_forces_nothing() -> None:
    before = launched_block()
    with forced(triton.Config({"BLOCK": 64}, num_warps=4)):
        assert launched_block() == before


def test_every_target_has_a_list() -> None:
    assert isinstance(block_kernel, Tuned)
    assert block_kernel.configs("sm_90") == CONFIGS[1:]
    assert block_kernel.configs("gfx942") == CONFIGS[:1]
    assert block_kernel.configs("gfx950") == CONFIGS[:1], "AMD's are like gfx942"
    assert block_kernel.configs("sm_103") == block_kernel.configs("sm_100")
    own = Tuned(block_kernel.fn, {"default": CONFIGS, "sm_120": CONFIGS[:1]}, key=[])
    assert own.configs("sm_89") == CONFIGS[:1] != own.configs("sm_90")
    assert {id(c) for c in block_kernel.shipped()} == {id(c) for c in CONFIGS}


@pytest.mark.skipif(not INTERPRETED, reason="a GPU tunes")
def test_the_interpreter_runs_the_first_config() -> None:
    assert launched_block() == 16


class Gpu:
    """Stands in for a driver: each timing costs what `costs` says of the launched block."""

    def __init__(self, costs: dict[int, float]) -> None:
        self.costs = costs
        self.launched: list[int] = []

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_benchmarker(self) -> Any:
        def bench(launch: Any, quantiles: Any) -> list[float]:
            launch()
            return [self.costs[self.launched[-1]]] * len(quantiles)

        return bench


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """Pretends that `adding_kernel` is launched on a GPU, with an empty cache on its disk."""

    def pretend(costs: dict[int, float]) -> Gpu:
        driver = Gpu(costs)
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)
        monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
        monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
        monkeypatch.setattr(adding_kernel, "_tuners", {})

        def run(*args: Any, BLOCK: int, **kwargs: Any) -> None:
            driver.launched.append(BLOCK)

        monkeypatch.setattr(adding_kernel.fn, "run", run)
        return driver

    return pretend


def add(fresh: bool) -> None:
    adding_kernel[(1,)](torch.zeros(1), FIXED=1, FRESH=fresh)


def test_the_fastest_config_is_chosen_once_also_by_a_later_process(gpu: Any) -> None:
    first = gpu({16: 2.0, 32: 1.0})
    add(True)
    add(True)
    assert set(first.launched[:-2]) == {16, 32}
    assert first.launched[-2:] == [32, 32]
    # only the cache on disk remembers the choice
    later = gpu({16: 1.0, 32: 2.0})
    add(True)
    assert later.launched == [32]


def test_a_launch_that_writes_in_place_is_never_repeated(gpu: Any) -> None:
    driver = gpu({16: 2.0, 32: 1.0})
    add(False)
    assert driver.launched == [16]
    with forced(CONFIGS[1]):
        add(False)
    assert driver.launched == [16, 32]


def test_poisoned_empty_is_nan_or_the_least_integer() -> None:
    with poisoned_empty():
        for x in (torch.empty(2), torch.empty_like(torch.ones(2)), torch.ones(1).new_empty(2)):
            assert x.isnan().all()
        assert torch.empty(1, dtype=torch.int32).item() == -(2**31)
    assert torch.empty is not None


@pytest.mark.parametrize(("read", "written"), [(2, 4), (1, 4), (2, 3)])
def test_fences_tell_what_is_read_and_written_beside_a_tensor(read: int, written: int) -> None:
    """The kernel reads 2 and writes 4; compiled, a read alone does not show."""
    beside = pytest.raises(Exception, match="beside")
    wrong = written < 4 or (INTERPRETED and read < 2)
    with beside if wrong else nullcontext(), fenced_empty():
        x, y = torch.empty(read, device=DEVICE), torch.empty(written, device=DEVICE)
        unmasked_kernel[(1,)](x.fill_(1), y, BLOCK=4)
        assert y[:read].tolist() == [1.0] * read


def test_lazy_storage_costs_what_is_touched() -> None:
    x = lazily((2, 3), (2**31, 1), torch.bfloat16)
    x[1, 2] = 5.0
    assert x.untyped_storage().nbytes() == 2 * (2**31 + 3)
    assert x.tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]]
