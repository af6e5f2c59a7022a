"""The clock: samples are interleaved, medians count; the GPU's part runs on a simulated GPU."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.timing import clock
from benchmarks.timing.clock import cpu_timing, peak_bytes, time_all


def figures(timing: Any) -> tuple[float, float, str, int]:
    return timing.seconds, timing.spread, timing.how, len(timing.samples)


def test_samples_are_interleaved_and_their_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    # the three calls take 1, 3, 2 seconds
    ticks = iter([0, 1, 10, 11, 20, 23, 30, 33, 40, 42, 50, 52])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(ticks))
    times = time_all({name: [lambda name=name: order.append(name)] for name in "ab"}, gpu=False)
    assert order == ["a", "b"] * 3
    # the quartiles are 1 and 3, the median 2
    assert [figures(times[name]) for name in "ab"] == [(2, 1.0, "CPU", 3)] * 2


def test_a_failed_provider_gets_a_sentence_and_the_others_their_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def timing(calls: Any) -> Any:
        if len(calls) == 2:
            raise ValueError
        return cpu_timing(calls)

    error = torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")
    greedy = mock.Mock(side_effect=[None, None, error])
    monkeypatch.setattr(clock, "cpu_timing", timing)
    times = time_all({"early": [int, int], "late": [greedy], "none": [int]}, gpu=False)
    assert times["early"] == "ValueError: no text"
    assert times["late"] == "OutOfMemoryError: CUDA out of memory. Tried"
    assert len(times["none"].samples) == 3


class SimulatedGpu:
    """Replaces torch.cuda. Only calls move its time, each by 10 us."""

    get_device_properties = staticmethod(lambda device: SimpleNamespace(L2_cache_size=50_000_000))
    current_device = current_stream = reset_peak_memory_stats = staticmethod(int)
    memory_allocated = staticmethod(lambda: 100)
    max_memory_allocated = staticmethod(lambda: 175)

    def __init__(self) -> None:
        self.now, self.log = 0.0, []
        self.recording: list[Any] | None = None
        self.graph_pool_handle = itertools.count().__next__

    def call(self) -> None:
        if self.recording is not None:
            self.recording.append(self.call)
        else:
            self.log.append("call")
            self.now += 1e-5

    def waiting_call(self) -> None:
        if self.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.call()

    def slow_call(self) -> None:
        self.call()
        self.now += 1.5

    def Event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(at=None, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(calls=[])
        graph.replay = lambda: [call() for call in graph.calls]
        return graph

    @contextlib.contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any) -> Iterator[None]:
        """As PyTorch's: the error within is the context of the error at its end."""
        self.recording = graph.calls
        try:
            yield
        except RuntimeError:
            raise RuntimeError("the capture was invalidated")  # noqa: B904
        finally:
            self.recording = None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    gpu = SimulatedGpu()
    flushed = SimpleNamespace(sum=lambda: gpu.log.append("flush"))
    monkeypatch.setattr(torch, "cuda", gpu)
    monkeypatch.setattr(torch, "zeros", lambda size, **options: flushed)
    monkeypatch.setattr(clock, "_end_capture", lambda pool: gpu.log.append(f"end {pool}"))
    return gpu


def test_on_a_gpu_a_graph_of_all_calls_is_replayed_behind_a_flush(gpu: SimulatedGpu) -> None:
    timings = time_all({"a": [gpu.call] * 7, "b": [gpu.call]}, gpu=True)
    assert figures(timings["a"]) == (pytest.approx(1e-5), pytest.approx(0), "graph of 7", 20)
    assert figures(timings["b"])[2:] == ("graph of 1", 20)
    # in the last round both run once more, each behind its flush
    assert gpu.log[-10:] == ["flush", *["call"] * 7, "flush", "call"]
    assert peak_bytes(gpu.call) == 75


def test_a_call_that_cannot_be_captured_runs_eagerly_and_says_so(gpu: SimulatedGpu) -> None:
    runs = {"a": [gpu.call], "b": [gpu.waiting_call] * 7, "c": [gpu.call]}
    timings = time_all(runs, gpu=True)
    assert timings["b"].seconds == pytest.approx(1e-5)
    assert timings["b"].how.startswith("eager, not capturable (RuntimeError: operation not")
    assert timings["c"].how == "graph of 1"
    assert "end 1" in gpu.log


def test_a_slow_call_is_neither_captured_nor_repeated(gpu: SimulatedGpu) -> None:
    timing = time_all({"a": [gpu.slow_call] * 2}, gpu=True)["a"]
    assert figures(timing) == (pytest.approx(1.50001), 0.0, "eager", 1)
