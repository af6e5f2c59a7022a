"""Which launch configuration a kernel runs with: tuned on a GPU, one under the interpreter.

A kernel ships a list of configurations, or one list for each kind of GPU. On a GPU the first call
with a new key times them all, and Triton's cache on disk keeps the choice. So another process on
that machine chooses the same and gives the same bits (configurations may sum in another order). The
key never holds a sequence length, so a longer video does not tune again. It does not recompile
either: arguments that vary with the length are in the kernel's `do_not_specialize`, and are int64
where they may pass 2^31. (A stride that is itself a length, as in a channel-first tensor, still
compiles two forms, because multiples of 16 allow wider loads.) A launch that writes in place is not
tuned: timing it would write many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import triton
from triton.runtime.jit import JITFunction, KernelInterface

__all__ = ["Configs", "Tuned", "dot_precision", "forced", "tile_configs", "tuned"]

# one list for every GPU, or lists by target ("sm_90", "gfx942"), with "default" for the others
Configs: TypeAlias = Sequence[triton.Config] | Mapping[str, Sequence[triton.Config]]

# GPUs without a list of their own, and the GPU whose list they use: it has the same kind of matrix
# instructions and no more shared memory (sm_80: 163 KiB, sm_100: 227, sm_120: 99). In order: Orin,
# A10 and RTX 3090, L4 and RTX 4090, B300, Thor, DGX Spark. Other AMD GPUs use gfx942's (64 KiB)
LIKE = {
    "sm_87": "sm_80", "sm_86": "sm_120", "sm_89": "sm_120", "sm_103": "sm_100", "sm_110": "sm_100",
    "sm_121": "sm_120",
}  # fmt: skip

_forced: triton.Config | None = None


@contextmanager
def forced(config: triton.Config) -> Iterator[None]:
    """Inside the block, every kernel that ships `config` (this very object) runs with it."""
    global _forced
    before, _forced = _forced, config
    try:
        yield
    finally:
        _forced = before


def tuned(
    configs: Configs, key: Sequence[str], repeatable: str | None = None
) -> Callable[[Any], Tuned]:
    """Let a `@triton.jit` kernel choose among `configs`, anew for each value of `key`.

    Args:
        configs: what to choose from; the first of a list is what the interpreter runs.
        key: names of kernel arguments; sizes of the model, never of the input.
        repeatable: name of a keyword of the launch; where it is false, the launch writes in place,
            and runs with the first configuration of its target instead of being timed.
    """
    return lambda kernel: Tuned(kernel, configs, key, repeatable)


class Tuned(KernelInterface):
    """A kernel with its configurations: launch it as any other, without the tuned arguments."""

    def __init__(
        self, fn: Any, configs: Configs, key: Sequence[str], repeatable: str | None = None
    ) -> None:
        self.fn = fn
        self.key = list(key)
        self.repeatable = repeatable
        self.lists = configs if isinstance(configs, Mapping) else {"default": configs}
        self._places = [fn.arg_names.index(name) for name in self.key]
        self._tuners: dict[str, Any] = {}
        self._chosen: dict[tuple[Any, ...], dict[str, Any]] = {}

    def configs(self, target: str = "default") -> list[triton.Config]:
        """What may run on `target`, as "sm_90" or "gfx942"."""
        like = LIKE.get(target, "gfx942" if target.startswith("gfx") else "default")
        return list(self.lists.get(target) or self.lists.get(like) or self.lists["default"])

    def shipped(self) -> list[triton.Config]:
        """Every configuration of every target, each once."""
        every = [config for configs in self.lists.values() for config in configs]
        return list({id(config): config for config in every}.values())

    def run(self, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        launch = dict(kwargs, grid=grid, warmup=warmup)
        if config := self._given(kwargs):
            return self.fn.run(*args, **launch, **config.all_kwargs())
        # Triton's tuner names all arguments at each call, so it is asked once for each choice
        case = self._case(args, kwargs)
        if case in self._chosen:
            return self.fn.run(*args, **launch, **self._chosen[case])
        tuner = self._tuner()
        made = tuner.run(*args, **launch)
        self._chosen[case] = tuner.best_config.all_kwargs()
        return made

    def _given(self, kwargs: Mapping[str, Any]) -> triton.Config | None:
        """The configuration of a launch that is not tuned."""
        if _forced is not None and any(config is _forced for config in self.shipped()):
            return _forced
        if not isinstance(self.fn, JITFunction):
            # the interpreter: timing means nothing there and needs a driver
            return self.configs()[0]
        if self.repeatable and not kwargs[self.repeatable]:
            return self.configs(_target())[0]
        return None

    def _case(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a choice depends on: the device, the key's values and the tensors' dtypes."""
        given = len(args)
        key = [args[i] if i < given else kwargs[n] for i, n in zip(self._places, self.key)]
        dtypes = [getattr(x, "dtype", None) for x in (*args, *kwargs.values())]
        return (triton.runtime.driver.active.get_current_device(), *key, *dtypes)

    def _tuner(self) -> Any:
        target = _target()
        if target not in self._tuners:
            choose = triton.autotune(self.configs(target), key=self.key, cache_results=True)
            self._tuners[target] = choose(self.fn)
        return self._tuners[target]


def _target() -> str:
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch).split(":")[0]


def dot_precision(target: str) -> str:
    """tl.dot's input_precision for float32 operands on `target`, as "sm_90" or "default".

    AMD's matrix instructions take float32 itself. NVIDIA's take TF32, of which three products give
    float32's accuracy; without tensor cores the accumulators would not fit in registers.
    """
    return "ieee" if target.startswith("gfx") else "tf32x3"


def tile_configs(by_target: Mapping[str, Sequence[tuple[int, ...]]]) -> Configs:
    """Configurations by target: KiB of the tile that a program owns (OWN, in bytes) and of one that
    its loop loads (STEP), warps, stages."""

    def config(target: str, own: int, step: int, warps: int, stages: int) -> triton.Config:
        sizes: dict[str, Any] = {
            "OWN": own << 10,
            "STEP": step << 10,
            "DOT_PRECISION": dot_precision(target),
        }
        return triton.Config(sizes, num_warps=warps, num_stages=stages)

    return {
        target: [config(target, *form) for form in forms] for target, forms in by_target.items()
    }
