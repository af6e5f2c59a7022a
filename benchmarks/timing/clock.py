"""How long calls take on the device: the providers' samples are interleaved, the median counts.

On a GPU a provider's calls are captured in one CUDA graph, each call on tensors of its own. For a
sample the L2 cache is filled with other bytes; then one replay runs between two events. So every
call reads its tensors from memory, and the time holds no launch from Python. A call that cannot be
captured, or takes longer than `SLOW`, runs eagerly between the same events.

`triton.testing.do_bench_cudagraph` neither interleaves nor flushes the L2 cache, and it fails on a
call that cannot be captured.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Run = Callable[[], Any]

SLOW = 0.05  # seconds of a call that hides its launches
SECONDS_EACH = 0.2  # of samples per provider
ROUNDS = (3, 20)


@dataclass
class Timing:
    """Samples of one provider, each the seconds that `take` found `calls` calls to take."""

    take: Callable[[], float]
    rounds: int
    calls: int
    how: str
    samples: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median of one call."""
        return statistics.median(self.samples) / self.calls

    @property
    def spread(self) -> float:
        """The middle half of the samples over the median."""
        if len(self.samples) == 1:
            return 0.0
        low, middle, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / middle


def time_all(runs: Mapping[str, Sequence[Run]], gpu: bool) -> dict[str, Timing | str]:
    """The time of one call of each provider, or a sentence if it could not be taken.

    Args:
        runs: by provider, its calls, each on other tensors. They have run before.
    """
    timings: dict[str, Timing] = {}
    failed: dict[str, str] = {}
    timing_of = GpuClock().timing if gpu else cpu_timing
    for name, calls in runs.items():
        try:
            timings[name] = timing_of(calls)
        except Exception as error:  # of another project's kernel, or out of memory
            failed[name] = sentence(error)
    for turn in range(ROUNDS[1]):
        for name, timing in list(timings.items()):
            try:
                if turn < timing.rounds:
                    timing.samples.append(timing.take())
            except torch.OutOfMemoryError as error:
                # the graphs of the others hold memory that this call could use before
                failed[name] = sentence(error)
                del timings[name]
    return timings | failed


def sentence(error: BaseException) -> str:
    """An error as one line: its kind and how its text begins."""
    text = str(error).strip() or "no text"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"


def peak_bytes(run: Run) -> int:
    """What one call allocates on the GPU at its peak, its result included."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def cpu_timing(calls: Sequence[Run]) -> Timing:
    def take() -> float:
        start = time.perf_counter()
        calls[0]()
        return time.perf_counter() - start

    return Timing(take, ROUNDS[0], 1, "CPU")


class GpuClock:
    """Samples on the GPU. The current stream must not be the default one, which has no capture."""

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        # reading it takes longer than queueing the launches behind it
        self.other_bytes = torch.zeros(max(8 * cache, 1 << 28) // 4, device="cuda")

    def timing(self, calls: Sequence[Run]) -> Timing:
        calls[0]()
        once, eager = self.seconds(calls[0]), partial(Timing, lambda: self.seconds(calls[0]))
        if once > SLOW:
            return eager(max(1, min(ROUNDS[0], int(2 / once))), 1, "eager")
        rounds = min(ROUNDS[1], max(ROUNDS[0], int(SECONDS_EACH / (once * len(calls) + 2e-4))))
        try:
            graph = self.captured(calls)
        except Exception as error:
            # the context is the error that ended the capture
            why = sentence(error.__context__ or error)
            return eager(rounds, 1, f"eager, not capturable ({why})")
        graph.replay()
        how = f"graph of {len(calls)}"
        return Timing(lambda: self.seconds(graph.replay), rounds, len(calls), how)

    def captured(self, calls: Sequence[Run]) -> torch.cuda.CUDAGraph:
        """All calls as one graph, in a pool of its own: a failed capture may spoil its pool."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
                for call in calls:
                    call()
        except Exception:
            _end_capture(pool)
            raise
        return graph

    def seconds(self, run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # reads only: written bytes would be flushed to memory within the sample
        self.other_bytes.sum()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def _end_capture(pool: tuple[int, int]) -> None:
    """Undo what PyTorch leaves behind after a failed capture.

    The allocator would still serve the pool and never empty its cache, and the random generator
    would still belong to the graph, so drawing a number outside of it would be an error.
    """
    device = torch.cuda.current_device()
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    with contextlib.suppress(RuntimeError, AttributeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())
