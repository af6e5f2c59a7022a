"""How long calls take on the device, each next to the others: interleaved, medians.

On a GPU a provider's calls are captured in one CUDA graph, each call on tensors of its own, and a
sample is: the L2 cache filled with other bytes, an event, one replay, an event. So every call finds
its tensors in memory, and no launch from Python is in the time. What cannot be captured, or takes
longer than `SLOW`, runs eagerly between the same events.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Timing", "on_stream", "peak_bytes", "time_all"]

Run = Callable[[], Any]

SLOW = 0.05  # seconds of a call behind which launches no longer show
SECONDS_EACH = 0.2  # of samples per provider
ROUNDS = (3, 20)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the middle half of the samples over it."""

    seconds: float
    spread: float
    how: str


def time_all(runs: Mapping[str, Sequence[Run]], gpu: bool) -> dict[str, Timing | str]:
    """The time of one of each provider's calls; a sentence where it could not be taken.

    Args:
        runs: by provider, its calls, each on other tensors. They have run before.
    """
    samplers: dict[str, _Sampler] = {}
    timings: dict[str, Timing | str] = {}
    clock = _GpuClock() if gpu else _CpuClock()
    for name, calls in runs.items():
        try:
            samplers[name] = clock.sampler(calls)
        except Exception as error:  # another project's, or out of memory
            timings[name] = sentence(error)
    for turn in range(ROUNDS[1]):
        for name, sampler in list(samplers.items()):
            try:
                if turn < sampler.rounds:
                    sampler.samples.append(sampler.take())
            except torch.OutOfMemoryError as error:
                # the other's graphs hold memory that it had before
                timings[name] = sentence(error)
                del samplers[name]
    return timings | {name: sampler.timing() for name, sampler in samplers.items()}


def sentence(error: BaseException) -> str:
    """An error as one line: its kind and how its text begins."""
    text = str(error).strip() or "no text"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"


@contextlib.contextmanager
def on_stream(gpu: bool) -> Iterator[None]:
    """A stream that can be captured: a backward pass runs on the stream of its forward pass."""
    if not gpu:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def peak_bytes(run: Run, gpu: bool) -> int | None:
    """What one call allocates at its peak, its result included; not known on a CPU."""
    if not gpu:
        run()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@dataclass
class _Sampler:
    take: Callable[[], float]
    rounds: int
    calls: int
    how: str

    def __post_init__(self) -> None:
        self.samples: list[float] = []

    def timing(self) -> Timing:
        middle = statistics.median(self.samples)
        quarters = (
            statistics.quantiles(self.samples, n=4) if len(self.samples) > 1 else [middle] * 3
        )
        spread = (quarters[2] - quarters[0]) / middle if middle else 0.0
        how = f"{self.how}, {len(self.samples)} rounds"
        return Timing(middle / self.calls, spread, how)


class _CpuClock:
    def sampler(self, calls: Sequence[Run]) -> _Sampler:
        def take() -> float:
            start = time.perf_counter()
            calls[0]()
            return time.perf_counter() - start

        return _Sampler(take, ROUNDS[0], 1, "CPU")


class _GpuClock:
    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        # so large that what is launched behind it waits in line before it has been read
        self.flushed = torch.zeros(max(8 * cache, 1 << 28) // 4, device="cuda")

    def sampler(self, calls: Sequence[Run]) -> _Sampler:
        calls[0]()
        once = self.seconds(calls[0])
        if once > SLOW:
            rounds = max(1, min(ROUNDS[0], int(2 / once)))
            return _Sampler(lambda: self.seconds(calls[0]), rounds, 1, "eager")
        rounds = min(ROUNDS[1], max(ROUNDS[0], int(SECONDS_EACH / (once * len(calls) + 2e-4))))
        try:
            graph = self.captured(calls)
        except Exception as error:
            # what ended the capture; that it ended is the rest of the story
            how = f"eager, not capturable ({sentence(error.__context__ or error)})"
            return _Sampler(lambda: self.seconds(calls[0]), rounds, 1, how)
        graph.replay()
        how = f"graph of {len(calls)}"
        return _Sampler(lambda: self.seconds(graph.replay), rounds, len(calls), how)

    def captured(self, calls: Sequence[Run]) -> torch.cuda.CUDAGraph:
        """All calls as one graph, in memory of its own: a capture that fails may spoil its pool."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
                for call in calls:
                    call()
        except Exception:
            _forget(pool)
            raise
        return graph

    def seconds(self, run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        # read, not written: what was written would be written back within the sample
        self.flushed.sum()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def _forget(pool: tuple[int, int]) -> None:
    """Let the process go on behind a capture that failed.

    PyTorch goes on allocating for it, and never empties its cache again; and its random numbers are
    drawn for a graph, which outside of one is an error.
    """
    device = torch.cuda.current_device()
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    with contextlib.suppress(RuntimeError, AttributeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())
