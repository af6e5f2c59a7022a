"""Time and memory of calls on the CPU, and the machine that they ran on."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import ROOT


def machine(threads: int) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {threads} threads",
        # times mean little where the load is far above the threads
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def medians(
    calls: Mapping[str, Callable[[Any], Any]],
    repeats: int,
    around: Mapping[str, Callable[[], AbstractContextManager[Any]]] | None = None,
) -> dict[str, float]:
    """Median milliseconds of each call; the calls take turns, and a first turn warms up.

    around: by name, a context that each call runs in, untimed; it yields the call's argument.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            with around[name]() if around else nullcontext() as made:
                begin = time.perf_counter()
                call(made)
                if turn:
                    times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def peak_elsewhere(case: str, threads: int, *arguments: str) -> float | None:
    """`<case>.peak(*arguments)` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.cpu", case, "--threads", str(threads)]
    answer = subprocess.run(
        [*command, "--peak", *arguments], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    last = answer.stdout.split()[-1]
    return None if last == "None" else float(last)


def extra_peak_mb(call: Callable[[], Any]) -> float | None:
    """How far `call()` raises the process's peak memory; None where the system does not say."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return None

    def kilobytes(field: str) -> int:
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    clear.write_text("5")  # resets the peak to the present
    before = kilobytes("VmRSS")
    call()
    return round((kilobytes("VmHWM") - before) / 1024, 1)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
