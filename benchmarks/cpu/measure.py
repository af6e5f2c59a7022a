"""Two forms of the same work on the CPU: their time and memory, and facts of the machine."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from tests.contract import as_tuple

# prepares a form, yields its call and cleans up; only the call is timed
Pass = Callable[[str], AbstractContextManager[Callable[[], Any]]]


class Comparison(NamedTuple):
    """One row: ours and a peer's form of the same work, on the same inputs.

    Args:
        forms: the two names, ours first; each pass takes one of them.
        facts: what the row is about.
        times: the passes that are timed ("forward", "training", ...).
        memory: the passes whose memory is taken.
        distance: between two results of the forward pass; it names the row's difference.
    """

    forms: tuple[str, ...]
    facts: dict[str, Any]
    times: Mapping[str, Pass]
    memory: Mapping[str, Pass]
    distance: Callable[[torch.Tensor, torch.Tensor], float]


def still(run: Callable[[str], Any]) -> Pass:
    """A pass that needs nothing made ready."""
    return lambda form: nullcontext(partial(run, form))


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


def medians(timed: Pass, forms: tuple[str, ...], repeats: int) -> dict[str, float]:
    """Median milliseconds of each form; they take turns, and a first turn warms up."""
    times: dict[str, list[float]] = {form: [] for form in forms}
    for form in forms * (repeats + 1):
        with timed(form) as run:
            begin = time.perf_counter()
            run()
            times[form].append(1e3 * (time.perf_counter() - begin))
    return {form: round(statistics.median(of[1:]), 2) for form, of in times.items()}


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


def peak(
    row: Callable[..., Comparison], shape: tuple[Any, ...], small: bool, name: str, form: str
) -> float | None:
    """Megabytes that one call needs beyond its inputs, in this process."""
    # the first call sets the libraries up
    for size in (True, small):
        with row(*shape, small=size).memory[name](form) as run:
            extra = extra_peak_mb(run)
    return extra


def difference(row: Comparison) -> dict[str, float]:
    """How far the results of the two forms' forward passes are apart."""
    results = []
    for form in row.forms:
        with torch.no_grad(), row.times["forward"](form) as run:
            results.append(as_tuple(run()))
    return {f"{row.distance.__name__}_difference": max(map(row.distance, *results))}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().max())
