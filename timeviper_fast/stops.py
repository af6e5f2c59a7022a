"""The stops between a video file and its answer: shape, time and peak memory of each."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["STOPS", "Stop", "StopWatch"]

STOPS = ("decode", "resize", "vision", "merge", "project", "prompt", "prefill", "generate")


@dataclass
class Stop:
    """One stop's total over a request.

    Attributes:
        name: one of STOPS, or a compression stage ("prefill: uniform stage before layer 7").
        shape: of the output, as "3600 x 16 x 4480".
        tokens: number of output tokens, as "57600" or "57600 -> 28800"; empty if there are none.
        milliseconds: wall clock spent in it.
        peak_bytes: peak memory until the stop last ended: of the device on CUDA, of the process
            elsewhere. Interleaved stops, such as decode and vision, may end in another order than
            they are listed.
    """

    name: str
    shape: str = ""
    tokens: str = ""
    milliseconds: float = 0.0
    peak_bytes: int = 0


class StopWatch:
    """Times the stops of one request on one device; stops may be entered many times."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stops = {name: Stop(name) for name in STOPS}

    @contextmanager
    def at(self, name: str) -> Iterator[Stop]:
        """Add the block's time to the stop `name`; a CUDA device is synchronised on both ends."""
        stop = self.stops.setdefault(name, Stop(name))
        self._wait()
        start = time.perf_counter()
        try:
            yield stop
        finally:
            self._wait()
            stop.milliseconds += (time.perf_counter() - start) * 1e3
            stop.peak_bytes = max(stop.peak_bytes, _memory(self.device))

    def rows(self) -> list[Stop]:
        """Every stop in the order of a request, compression stages right behind prefill."""
        named = [(STOPS.index(name.partition(":")[0]), stop) for name, stop in self.stops.items()]
        return [stop for _, stop in sorted(named, key=lambda row: row[0])]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        # the standard library cannot read peak memory on Windows
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss is in bytes on macOS and in KiB on Linux
    return peak if sys.platform == "darwin" else peak * 1024
