"""The clock: interleaved samples, medians, and the GPU's way of it on a pretended GPU."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.timing import clock
from benchmarks.timing.clock import Timing, cpu_sampler, on_stream, peak_bytes, sentence, time_all


def test_samples_are_interleaved_and_their_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    ticks = itertools.count()
    # a call takes 1, 3, 2 seconds
    takes = iter([0, 1, 10, 11, 20, 23, 30, 33, 40, 42, 50, 52])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: (next(ticks), next(takes))[1])
    runs = {name: [lambda name=name: order.append(name)] for name in "ab"}
    times = time_all(runs, gpu=False)
    assert order == ["a", "b"] * 3
    assert [t.seconds for t in times.values() if isinstance(t, Timing)] == [2, 2]
    # quarters 1 and 3 over the median 2
    assert times["a"] == Timing(2, 1.0, "CPU, 3 rounds")


def test_who_cannot_be_timed_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def sampler(calls: Any) -> Any:
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")
        return cpu_sampler(calls)

    monkeypatch.setattr(clock, "cpu_sampler", sampler)
    times = time_all({"a": [int, int], "b": [int]}, gpu=False)
    assert times["a"] == "OutOfMemoryError: CUDA out of memory. Tried"
    assert isinstance(times["b"], Timing)


def test_an_error_is_one_line() -> None:
    assert sentence(ValueError("")) == "ValueError: no text"
    assert len(sentence(ValueError("x" * 900))) < 250


class PretendedGpu:
    """What timing.py asks torch.cuda for, on a clock that only calls move: each takes 10 us."""

    def __init__(self, capturable: bool = True) -> None:
        self.now, self.log, self.capturable = 0.0, [], capturable
        self.recording: list[Any] | None = None
        self.flushed = SimpleNamespace(sum=lambda: self.log.append("flush"))
        self.pools = itertools.count()
        self.spoilt: set[int] = set()

    def call(self) -> None:
        if self.recording is not None:
            if not self.capturable:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.recording.append(self.call)
        else:
            self.log.append("call")
            self.now += 1e-5

    def event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(at=None, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event

    @contextlib.contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any) -> Iterator[None]:
        """As PyTorch's: what went wrong within is the context of what its end says."""
        if pool in self.spoilt:
            raise RuntimeError("already recording to mempool_id")
        self.recording = graph.calls
        try:
            yield
        except RuntimeError:
            self.spoilt.add(pool)
            raise RuntimeError("the capture was invalidated")  # noqa: B904
        finally:
            self.recording = None

    def new_graph(self) -> Any:
        graph = SimpleNamespace(calls=[])
        graph.replay = lambda: [call() for call in graph.calls]
        return graph

    def install(self, patch: pytest.MonkeyPatch) -> None:
        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=50_000_000),
            "current_device": lambda: 0,
            "graph_pool_handle": lambda: next(self.pools),
            "Event": self.event,
            "CUDAGraph": self.new_graph,
            "graph": self.graph,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda s: contextlib.nullcontext(),
            "synchronize": lambda: None,
            "memory_allocated": lambda: 100,
            "max_memory_allocated": lambda: 175,
            "reset_peak_memory_stats": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "zeros", lambda size, **options: self.flushed)
        patch.setattr(clock, "_forget", lambda pool: self.log.append(f"forget {pool}"))


def test_on_a_gpu_a_graph_of_all_calls_is_replayed_behind_a_flush(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = PretendedGpu()
    gpu.install(monkeypatch)
    with on_stream(True):
        timings = time_all({"a": [gpu.call] * 7, "b": [gpu.call]}, gpu=True)
    assert timings["a"] == Timing(pytest.approx(1e-5), pytest.approx(0), "graph of 7, 20 rounds")
    assert timings["b"].how == "graph of 1, 20 rounds"
    # the last round: both once more, each behind its flush
    assert gpu.log[-10:] == ["flush", *["call"] * 7, "flush", "call"]
    assert peak_bytes(gpu.call, gpu=True) == 75


def test_what_cannot_be_captured_runs_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PretendedGpu(capturable=False)
    gpu.install(monkeypatch)
    timing = time_all({"a": [gpu.call] * 7}, gpu=True)["a"]
    assert timing.seconds == pytest.approx(1e-5)
    assert timing.how.startswith("eager, not capturable (RuntimeError: operation not permitted")


def test_who_cannot_be_captured_leaves_the_others_their_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = PretendedGpu()
    gpu.install(monkeypatch)

    def waits() -> None:
        if gpu.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        gpu.call()

    timings = time_all({"a": [gpu.call], "b": [waits], "c": [gpu.call]}, gpu=True)
    assert timings["b"].how.startswith("eager, not capturable (RuntimeError: operation not")
    assert timings["c"].how.startswith("graph of 1")
    assert "forget 1" in gpu.log


def test_who_runs_out_of_memory_late_leaves_the_others_their_times() -> None:
    ran = iter(range(9))

    def greedy() -> None:
        if next(ran) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")

    timings = time_all({"a": [greedy], "b": [int]}, gpu=False)
    assert timings["a"] == "OutOfMemoryError: CUDA out of memory. Tried"
    assert timings["b"].how == "CPU, 3 rounds"


def test_what_is_slow_is_neither_captured_nor_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PretendedGpu()
    gpu.install(monkeypatch)

    def slow() -> None:
        gpu.call()
        gpu.now += 1.5

    timing = time_all({"a": [slow, slow]}, gpu=True)["a"]
    assert timing == Timing(pytest.approx(1.50001), 0.0, "eager, 1 rounds")
