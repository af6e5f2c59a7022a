"""What our Triton kernels, and the peers', move and compute per token: counted, without a GPU.

    python -m benchmarks.counting [--only "gated norm"] [--counted 8 16 24] [--peers FOLDER]

Every case of `benchmarks.shapes` and `shapes_video` runs in Triton's interpreter at a few small
sizes; a line through each count gives the count at the case's size. A run over all cases as they
stand goes to benchmarks/results/counted.md; with --only or --counted nothing is written.
benchmarks/README.md says what the columns mean, and what they do not.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import numpy as np

from benchmarks import RESULTS

if TYPE_CHECKING:
    from benchmarks.counting.counter import Record
    from benchmarks.shapes import Case, Floor, Prepare

RESULT = RESULTS / "counted.md"
OURS = "tvkernels"
Counts = dict[str, float]


class Row(NamedTuple):
    """One provider at one case; counts are per token (or sequence of a decode step)."""

    case: str
    provider: str
    counts: Counts
    misfit: float
    """largest distance of a count from its line, relative to that count"""
    floor: Floor


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--counted", type=int, nargs="+", help="sizes to count at")
    parser.add_argument("--peers", type=Path, help="folder that mamba-ssm is installed in")
    args = parser.parse_args(arguments)
    _interpret()
    if args.peers:
        sys.path.append(str(args.peers))
    text = [_heading()]
    for line in text[0].splitlines():
        print(line)
    for line in lines(args.only, args.counted):
        print(line, flush=True)
        text.append(line)
    if not (args.only or args.counted):
        RESULT.write_text("\n".join(text) + "\n", encoding="utf-8")


def lines(only: str = "", counted: Sequence[int] | None = None) -> Iterator[str]:
    """The table, line by line as it is counted, and below it what could not be counted."""
    from benchmarks import shapes, shapes_video

    providers = _providers()
    missing = []
    if providers["mamba-ssm"] is None:
        missing.append("mamba-ssm is not installed: its rows are left out.")
    yield from TABLE_HEAD
    for case in (*shapes.CASES, *shapes_video.CASES):
        for name, functions in providers.items():
            if case.ours and name != OURS:
                continue
            if only in case.name and hasattr(functions, case.op):
                row = count(case, name, counted or case.counted)
                if row is None:
                    missing.append(f"{case.op} has no Triton kernel in {name} yet.")
                else:
                    yield table_line(row)
    for sentence in dict.fromkeys(missing):
        yield from ("", sentence)


def count(case: Case, provider: str, sizes: Sequence[int]) -> Row | None:
    """Count a case at `sizes` and put lines through the counts; None where there is no kernel."""
    from benchmarks.counting.cache_model import together, traffic
    from benchmarks.shapes import L2_BYTES, Floor
    from tvkernels import BackendUnavailable

    ours = provider == OURS
    try:
        records = [_record(case, provider, size) for size in sizes]
    except BackendUnavailable:
        return None
    series = []
    for size, record, shares in zip(sizes, records, _shares(case, sizes, records)):
        # the cache is as much smaller as what passes it
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
    """Of each launch at each size: the part of its programs at the case's size that was counted."""
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


# the same call stands in several rows where only the target size differs
@functools.lru_cache(maxsize=8)
def _record_of(
    prepare: Prepare,
    provider: str,
    size: int,
    kernels: tuple[str, ...] | None,
    smaller: tuple[tuple[str, float], ...],
) -> Record:
    import torch

    from benchmarks.counting.counter import counting, interpretable
    from benchmarks.timing.peers import on_a_device, without_cuda
    from tvkernels import use_backend

    # the decays decide how far the scan's first pass looks back
    torch.manual_seed(0)
    with use_backend("triton"), _smaller(smaller), without_cuda(), on_a_device():
        with interpretable():
            # as wide as bfloat16, which the interpreter gets wrong, and quicker
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


TABLE_HEAD = (
    "| op and shape | kernels | launches | requested kB | cold kB | together kB | L2 kB |"
    " least kB | cold / least | of floor | dot MFLOP | special k | misfit |",
    "|---|---|" + "---:|" * 11,
)


def table_line(row: Row) -> str:
    counts = row.counts
    seconds = row.floor._replace(bytes=counts["cold"], flops=counts["dot"]).seconds()
    kilobytes = [counts[key] / 1e3 for key in ("requested", "cold", "together", "cached")]
    cells = [
        row.case,
        row.provider,
        f"{counts['launches']:.0f}",
        *(f"{value:,.2f}" for value in [*kilobytes, row.floor.bytes / 1e3]),
        f"{counts['cold'] / row.floor.bytes:.3f}" if row.floor.bytes else "-",
        f"{row.floor.seconds() / seconds:.0%}" if row.floor.bytes else "-",
        f"{counts['dot'] / 1e6:.3f}",
        f"{counts['special'] / 1e3:.3f}",
        f"{row.misfit:.1%}",
    ]
    return "| " + " | ".join(cells) + " |"


@functools.cache
def _providers() -> dict[str, SimpleNamespace | None]:
    import tvkernels
    from benchmarks.timing.peers import mamba_ssm

    ours = SimpleNamespace(**{name: getattr(tvkernels, name) for name in tvkernels.__all__})
    return {OURS: ours, "mamba-ssm": mamba_ssm()}


def _heading() -> str:
    from importlib import metadata

    import torch
    import triton

    versions = {"Triton": triton.__version__, "torch": torch.__version__, "numpy": np.__version__}
    versions |= {
        found.name: found.version
        for found in metadata.distributions()
        if found.name.replace("_", "-") == "mamba-ssm"
    }
    return "\n".join(
        [
            "# Counted per token",
            "",
            "`python -m benchmarks.counting`: no GPU ran; nothing here is a time. What the columns",
            "mean, and what they do not: `benchmarks/README.md`. Per token of a prefill or of its",
            "backward pass, or per sequence of a decode step; kB is 1000 bytes. Counted with",
            ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
            "",
        ]
    )


def _interpret() -> None:
    """Kernels are made for the interpreter or for a GPU when Triton is imported."""
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("start this as a program: Triton is already imported")
    os.environ["TRITON_INTERPRET"] = "1"
