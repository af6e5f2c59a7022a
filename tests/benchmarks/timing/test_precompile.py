"""Tuning compiles all configurations at once, for a GPU that is not there."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import _async_compile, driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from benchmarks.timing.precompile import compiled_together

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled"
)
# the last compiles nowhere
CONFIGS = [triton.Config({"BLOCK": n}, num_warps=w) for n in (64, 128) for w in (1, 4)]
CONFIGS.append(triton.Config({"BLOCK": 48}))


class NoPointer:
    """What Triton asks of a tensor."""

    dtype = "float32"

    def data_ptr(self) -> int:
        return 1 << 20


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Autotuner:
    """A tuned kernel whose launches are left out, on an H200's target."""
    monkeypatch.setattr(
        driver,
        "_active",
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        ),
    )
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: object, warmup: bool, **options: object) -> object:
        return run(self, *args, warmup=True, **options) if warmup else None

    monkeypatch.setattr(JITFunction, "run", compile_only)

    @triton.autotune(CONFIGS, key=[])
    @triton.jit
    def add_one(x, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + i, tl.load(x + i, mask=i < n) + 1, mask=i < n)

    return add_one


def test_what_compiles_is_there_when_it_is_timed(
    kernel: Autotuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[int] = []

    def timed(self: Autotuner, *args: object, config: triton.Config, **options: object) -> list:
        # Triton 3.7 keeps an unfinished entry for what did not compile
        kernels = self.fn.device_caches[0][0].values()
        there.append(sum(isinstance(kernel, CompiledKernel) for kernel in kernels))
        return [float(len(there))] * 3

    monkeypatch.setattr(Autotuner, "_bench", timed)
    with compiled_together(2):
        kernel[(1,)](NoPointer(), 100)
        kernel[(1,)](NoPointer(), 100)
    assert there == [4] * 5
    assert kernel.best_config is CONFIGS[0]
    assert _async_compile.active_mode.get() is None
