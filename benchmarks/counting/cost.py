"""The bytes and FLOPs of a call per token: a line through counts at a few small sizes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

import tvkernels
from benchmarks.counting.cache_model import together, traffic
from benchmarks.counting.cases import CASES, Case
from benchmarks.counting.counter import Launch, counting, interpretable, totals
from benchmarks.shapes import L2_BYTES, Floor, Prepare
from benchmarks.table import markdown
from benchmarks.timing.peers import mamba_ssm

OURS = "tvkernels"
# of an H200
MULTIPROCESSORS = 132
COLUMNS = (
    "op and shape", "kernels", "launches", "requested kB", "cold kB", "together kB", "L2 kB",
    "least kB", "cold / least", "of floor", "dot MFLOP", "special k", "misfit",
)  # fmt: skip
Counts = dict[str, float]
Launches = list[Launch]


class Row(NamedTuple):
    """One provider at one case; counts are per token (or sequence of a decode step)."""

    case: str
    provider: str
    counts: Counts
    misfit: float
    """largest distance of a count from its line, relative to that count"""
    floor: Floor


def lines(only: str = "", counted: Sequence[int] | None = None) -> Iterator[str]:
    """The table, line by line as it is counted, and a sentence if the peer is missing."""
    yield from markdown(COLUMNS, [], numbers=11)
    for case in CASES:
        for name, functions in _providers().items():
            wanted = only in case.name and (name == OURS or not case.ours)
            if wanted and hasattr(functions, case.op):
                row = count(case, name, counted or case.counted)
                yield markdown(COLUMNS, [cells(row)], numbers=11)[-1]
    if _providers()["mamba-ssm"] is None:
        yield from ("", "mamba-ssm is not installed: its rows are left out.")


def count(case: Case, provider: str, sizes: Sequence[int]) -> Row:
    """Count a case at `sizes` and put lines through the counts."""
    ours = provider == OURS
    kernels = case.kernels if ours else None
    runs = [launched(case.prepare, provider, n, kernels, case.smaller(n)) for n in sizes]
    series = [
        summary(launches, share, L2_BYTES * size / case.size / case.part)
        for size, launches, share in zip(sizes, runs, shares(case, sizes, runs))
    ]
    counts, misfit = fit(sizes, series, case.size)
    scale = dict.fromkeys(counts, case.part / case.size) | {"launches": 1.0}
    counts = {key: value * scale[key] for key, value in counts.items()}
    for more in case.plus if ours else ():
        row = count(more, provider, more.counted)
        counts = {key: value + row.counts[key] for key, value in counts.items()}
        misfit = max(misfit, row.misfit)
    least = Floor(*(value / case.size for value in case.floor(case.size)))
    return Row(case.name, provider, counts, misfit, least)


def summary(launches: Launches, share: Sequence[float], l2_bytes: float) -> Counts:
    """The counts of the table. The cache that stays between launches is scaled like the size."""
    total, names = totals(launches), ("launches", "requested", "cold", "dot", "special")
    # requested_read and requested_write are one count, so are dot.fp16 and dot.fp32
    counts = {name: sum(n for key, n in total.items() if key.startswith(name)) for name in names}
    cached, moved = traffic(launches, l2_bytes), together(launches, share, L2_BYTES)
    return counts | {"cached": sum(cached), "together": sum(moved)}


def shares(case: Case, sizes: Sequence[int], runs: Sequence[Launches]) -> list[list[float]]:
    """For each launch at each size: the counted fraction of its programs at the case's size."""
    # a PyTorch operation has no programs: it grows with the size
    grids = [
        [float(launch.counts["programs"] or size) for launch in launches]
        for size, launches in zip(sizes, runs)
    ]
    whole = [
        case.part * fit(sizes, [{"": n} for n in programs], case.size)[0][""]
        for programs in zip(*grids, strict=True)
    ]
    return [[n / most for n, most in zip(grid, whole)] for grid in grids]


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let launchers that ask PyTorch for their CUDA device run on CPU tensors, and let our ops skip
    the checks that read values, as they do for a GPU's tensors."""
    gpu = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    answers = [(torch.cuda, "device", contextlib.nullcontext())]
    answers += [(torch.cuda, "get_device_properties", gpu)]
    ours = [module for name, module in sys.modules.items() if name.startswith("tvkernels.")]
    answers += [(module, "on_host", False) for module in ours if hasattr(module, "on_host")]
    with contextlib.ExitStack() as stack:
        for owner, name, answer in answers:
            stack.enter_context(mock.patch.object(owner, name, return_value=answer))
        yield


# several rows count the same call and differ in the target size alone
@functools.lru_cache(maxsize=8)
def launched(
    prepare: Prepare, provider: str, size: int, kernels: tuple[str, ...] | None,
    smaller: tuple[tuple[str, float], ...],
) -> Launches:  # fmt: skip
    """The launches of a call; `smaller` names numbers of modules and their factors."""
    # the decays decide how far the scan's first pass looks back
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        for entry, factor in smaller:
            module, name = entry.split(":")
            owner = importlib.import_module(module)
            value = max(1, round(getattr(owner, name) * factor))
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(as_on_a_gpu())
        stack.enter_context(tvkernels.use_backend("triton"))
        with interpretable():
            # float16 is as wide as bfloat16, which the interpreter gets wrong, and faster
            run, _ = prepare(_providers()[provider], size, torch.float16)
        with counting(kernels) as launches:
            run()
    return launches


def fit(sizes: Sequence[int], series: Sequence[Counts], target: int) -> tuple[Counts, float]:
    """Each count at size `target` on its line through the series, and the largest misfit."""
    counts, misfit = {}, 0.0
    degree = min(1, len(sizes) - 1)
    for key in series[0]:
        y = np.array([counted[key] for counted in series], dtype=float)
        line = np.polynomial.Polynomial.fit(sizes, y, degree)
        counts[key] = float(line(target))
        if y.max() > 0:
            misfit = max(misfit, float(np.abs(line(np.array(sizes)) - y).max() / y.max()))
    return counts, misfit


def cells(row: Row) -> list[str]:
    """One line of the table, in the order of COLUMNS."""
    counts = row.counts
    least, counted = row.floor.seconds(), Floor(counts["cold"], counts["dot"]).seconds()
    moved = [counts[key] for key in ("requested", "cold", "together", "cached")]
    return [
        *(row.case, row.provider, f"{counts['launches']:.0f}"),
        *(f"{value / 1e3:,.2f}" for value in [*moved, row.floor.bytes]),
        f"{counts['cold'] / row.floor.bytes:.3f}" if row.floor.bytes else "-",
        f"{least / counted:.0%}" if row.floor.bytes else "-",
        *(f"{counts['dot'] / 1e6:.3f}", f"{counts['special'] / 1e3:.3f}", f"{row.misfit:.1%}"),
    ]


@functools.cache
def _providers() -> dict[str, Any]:
    return {OURS: tvkernels, "mamba-ssm": mamba_ssm() if find_spec("mamba_ssm") else None}
