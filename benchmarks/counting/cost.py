"""How much a call moves and computes per token: a line through counts at a few small sizes."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

import tvkernels
from benchmarks.counting.cache_model import together, traffic
from benchmarks.counting.cases import CASES, Case
from benchmarks.counting.counter import Record, counting, interpretable
from benchmarks.shapes import L2_BYTES, Floor, Prepare
from benchmarks.table import markdown
from benchmarks.timing.peers import mamba_ssm, on_a_device, without_cuda

OURS = "tvkernels"
COLUMNS = (
    "op and shape", "kernels", "launches", "requested kB", "cold kB", "together kB", "L2 kB",
    "least kB", "cold / least", "of floor", "dot MFLOP", "special k", "misfit",
)  # fmt: skip
Counts = dict[str, float]


class Row(NamedTuple):
    """One provider at one case; counts are per token (or sequence of a decode step)."""

    case: str
    provider: str
    counts: Counts
    misfit: float
    """largest distance of a count from its line, relative to that count"""
    floor: Floor


def lines(only: str = "", counted: Sequence[int] | None = None) -> Iterator[str]:
    """The table, line by line as it is counted, and below it a sentence for each missing row."""
    missing = []
    if _providers()["mamba-ssm"] is None:
        missing.append("mamba-ssm is not installed: its rows are left out.")
    yield from table([])
    for case in CASES:
        for name, functions in _providers().items():
            alone = case.ours and name != OURS
            if only in case.name and hasattr(functions, case.op) and not alone:
                row = count(case, name, counted or case.counted)
                if row is None:
                    missing.append(f"{case.op} has no Triton kernel in {name} yet.")
                else:
                    yield table([row])[-1]
    for sentence in dict.fromkeys(missing):
        yield from ("", sentence)


def table(rows: Iterable[Row]) -> list[str]:
    return markdown(COLUMNS, map(cells, rows), numbers=11)


def count(case: Case, provider: str, sizes: Sequence[int]) -> Row | None:
    """Count a case at `sizes` and put lines through the counts; None where there is no kernel."""
    ours = provider == OURS
    try:
        records = [_record(case, provider, size) for size in sizes]
    except tvkernels.BackendUnavailable:
        return None
    series = []
    for size, record, shares in zip(sizes, records, _shares(case, sizes, records)):
        # the cache is scaled like the size
        cached = traffic(record.launches, L2_BYTES * size / case.size / case.part)
        resident = together(record.launches, shares, L2_BYTES)
        series.append(summary(record) | {"cached": sum(cached), "together": sum(resident)})
    counts, misfit = fit(sizes, series, case.size)
    scale = dict.fromkeys(counts, case.part / case.size) | {"launches": 1.0}
    counts = {key: value * scale[key] for key, value in counts.items()}
    for more in case.plus if ours else ():
        row = count(more, provider, more.counted)
        assert row is not None
        counts = {key: value + row.counts[key] for key, value in counts.items()}
        misfit = max(misfit, row.misfit)
    least = Floor(*(value / case.size for value in case.floor(case.size)))
    return Row(case.name, provider, counts, misfit, least)


def summary(record: Record) -> Counts:
    """Sums of what the tables show."""
    total = record.totals()
    return {
        "launches": total["launches"],
        "requested": total["requested_read"] + total["requested_write"],
        "cold": total["cold_read"] + total["cold_write"],
        "dot": sum(n for key, n in total.items() if key.startswith("dot.")),
        "special": sum(n for key, n in total.items() if key.startswith("special.")),
    }


def _shares(case: Case, sizes: Sequence[int], records: Sequence[Record]) -> list[list[float]]:
    """For each launch at each size: the counted fraction of its programs at the case's size."""
    grids = [
        # a PyTorch operation has no programs: it grows with the size
        [float(launch.counts["programs"] or size) for launch in record.launches]
        for size, record in zip(sizes, records)
    ]
    whole = [
        case.part * fit(sizes, [{"": n} for n in programs], case.size)[0][""]
        for programs in zip(*grids, strict=True)
    ]
    return [[n / most for n, most in zip(grid, whole)] for grid in grids]


# several rows count the same call and differ in the target size alone
@functools.lru_cache(maxsize=8)
def _record_of(
    prepare: Prepare,
    provider: str,
    size: int,
    kernels: tuple[str, ...] | None,
    smaller: tuple[tuple[str, float], ...],
) -> Record:
    # the decays decide how far the scan's first pass looks back
    torch.manual_seed(0)
    with tvkernels.use_backend("triton"), _smaller(smaller), without_cuda(), on_a_device():
        with interpretable():
            # float16 is as wide as bfloat16, which the interpreter gets wrong, and faster
            run, _ = prepare(_providers()[provider], size, torch.float16)
        with counting(kernels) as record:
            run()
    return record


def _record(case: Case, provider: str, size: int) -> Record:
    smaller = [(name, size / case.size) for name in case.scaled]
    smaller += [(name, 1 / case.part) for name in case.divided]
    kernels = case.kernels if provider == OURS else None
    return _record_of(case.prepare, provider, size, kernels, tuple(smaller))


@contextlib.contextmanager
def _smaller(numbers: Iterable[tuple[str, float]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for entry, factor in numbers:
            module, name = entry.split(":")
            owner = importlib.import_module(module)
            smaller = max(1, round(getattr(owner, name) * factor))
            stack.enter_context(mock.patch.object(owner, name, smaller))
        yield


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
        row.case,
        row.provider,
        f"{counts['launches']:.0f}",
        *(f"{value / 1e3:,.2f}" for value in [*moved, row.floor.bytes]),
        f"{counts['cold'] / row.floor.bytes:.3f}" if row.floor.bytes else "-",
        f"{least / counted:.0%}" if row.floor.bytes else "-",
        f"{counts['dot'] / 1e6:.3f}",
        f"{counts['special'] / 1e3:.3f}",
        f"{row.misfit:.1%}",
    ]


@functools.cache
def _providers() -> dict[str, SimpleNamespace | None]:
    ours = SimpleNamespace(**{name: getattr(tvkernels, name) for name in tvkernels.__all__})
    return {OURS: ours, "mamba-ssm": mamba_ssm()}
