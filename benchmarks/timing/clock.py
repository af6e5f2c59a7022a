"""How long calls take on the device, each beside the others: interleaved samples, medians.

On a GPU a provider's calls are captured in one CUDA graph, each call on tensors of its own. A
sample is: the L2 cache filled with other bytes, an event, one replay, an event. So every call reads
its tensors from memory, and no launch from Python is in the time. What cannot be captured, or takes
longer than `SLOW`, runs eagerly between the same events.

`triton.testing.do_bench_cudagraph` does less: it repeats one call on the same tensors, neither
flushes the L2 cache nor interleaves, and fails with what cannot be captured.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[], Any]

SLOW = 0.05  # seconds of a call that hides its launches
SECONDS_EACH = 0.2  # of samples per provider
ROUNDS = (3, 20)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the middle half of the samples over it."""

    seconds: float
    spread: float
    how: str
    samples: tuple[float, ...] = field(default=(), compare=False)


def time_all(runs: Mapping[str, Sequence[Run]], gpu: bool) -> dict[str, Timing | str]:
    """The time of one of each provider's calls; a sentence where it could not be taken.

    Args:
        runs: by provider, its calls, each on other tensors. They have run before.
    """
    samplers: dict[str, _Sampler] = {}
    timings: dict[str, Timing | str] = {}
    sampler_of = _GpuClock().sampler if gpu else cpu_sampler
    for name, calls in runs.items():
        try:
            samplers[name] = sampler_of(calls)
        except Exception as error:  # of another project's kernel, or out of memory
            timings[name] = sentence(error)
    for turn in range(ROUNDS[1]):
        for name, sampler in list(samplers.items()):
            try:
                if turn < sampler.rounds:
                    sampler.samples.append(sampler.take())
            except torch.OutOfMemoryError as error:
                # the graphs of the others hold memory that this call had before
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
    samples: list[float] = field(default_factory=list)

    def timing(self) -> Timing:
        middle, some = statistics.median(self.samples), len(self.samples) > 1
        quarters = statistics.quantiles(self.samples, n=4) if some else [middle] * 3
        spread = (quarters[2] - quarters[0]) / middle if middle else 0.0
        each = tuple(sample / self.calls for sample in self.samples)
        return Timing(middle / self.calls, spread, f"{self.how}, {len(each)} rounds", each)


def cpu_sampler(calls: Sequence[Run]) -> _Sampler:
    def take() -> float:
        start = time.perf_counter()
        calls[0]()
        return time.perf_counter() - start

    return _Sampler(take, ROUNDS[0], 1, "CPU")


class _GpuClock:
    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        # so large that the launches behind it wait in line while it is read
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
            # the context is the error that ended the capture
            how = f"eager, not capturable ({sentence(error.__context__ or error)})"
            return _Sampler(lambda: self.seconds(calls[0]), rounds, 1, how)
        graph.replay()
        how = f"graph of {len(calls)}"
        return _Sampler(lambda: self.seconds(graph.replay), rounds, len(calls), how)

    def captured(self, calls: Sequence[Run]) -> torch.cuda.CUDAGraph:
        """All calls as one graph, in a pool of its own: a failed capture may spoil its pool."""
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
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # read, not written: written bytes would go back to memory within the sample
        self.flushed.sum()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def _forget(pool: tuple[int, int]) -> None:
    """Let the process go on after a failed capture.

    PyTorch would go on allocating for it and never empty its cache again, and random numbers would
    be drawn for a graph, which is an error outside of one.
    """
    device = torch.cuda.current_device()
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    with contextlib.suppress(RuntimeError, AttributeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())
