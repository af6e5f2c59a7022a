"""Which launch configuration a kernel runs with: forced, tuned on a GPU, the interpreter's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contract import TRITON
from tests.interpreter import INTERPRETED

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not TRITON, reason="neither the interpreter nor a GPU"),
]

if TRITON:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from tvkernels.core.tune import Tuned, forced, tuned

    DEVICE = "cpu" if INTERPRETED else "cuda"

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

    def get_current_device(self) -> int:
        return 0

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
        monkeypatch.setattr(adding_kernel, "_chosen", {})

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


def test_the_tuner_is_asked_once_for_each_key_and_dtype(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own look-up names all arguments, which costs more than the rest of a launch."""
    gpu({16: 2.0, 32: 1.0})
    asked = []
    run = triton.runtime.Autotuner.run
    monkeypatch.setattr(
        triton.runtime.Autotuner,
        "run",
        lambda *args, **kw: (asked.append(kw["FIXED"]), run(*args, **kw)),
    )
    wide = torch.zeros(1, dtype=torch.float64)
    for y, fixed in ((torch.zeros(1), 1), (torch.zeros(7, 3), 1), (wide, 1), (wide, 2), (wide, 1)):
        adding_kernel[(1,)](y, FIXED=fixed, FRESH=True)
    assert asked == [1, 1, 2]


def test_a_launch_that_writes_in_place_is_never_repeated(gpu: Any) -> None:
    driver = gpu({16: 2.0, 32: 1.0})
    add(False)
    assert driver.launched == [16]
    with forced(CONFIGS[1]):
        add(False)
    assert driver.launched == [16, 32]
