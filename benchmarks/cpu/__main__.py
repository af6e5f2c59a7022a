"""Our references on the CPU against other people's plain PyTorch.

    python -m benchmarks.cpu scan|conv|dropin|tome|resize|sessions [--threads 2] [--repeats 5]

Both run in one process on the same inputs, their calls alternating. The result goes to
benchmarks/results/cpu_<case>.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks import RESULTS
from benchmarks.cpu.measure import Comparison, difference, machine, medians, peak

CASES = ("scan", "conv", "dropin", "tome", "resize", "sessions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one short shape; writes no file")
    args = parser.parse_args()
    # read by the fresh processes, whose memory it changes, when they import torch
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    case = importlib.import_module(f"benchmarks.cpu.{args.case}")
    rows = []
    for index in range(1 if args.small else len(case.ROWS)):
        rows.append(measure(case, index, args))
        print(line(rows[-1]), flush=True)
    if not args.small:
        text = json.dumps({**machine(args.threads), **case.FACTS, "rows": rows}, indent=1) + "\n"
        (RESULTS / f"cpu_{args.case}.json").write_text(text, encoding="utf-8")


def measure(case: Any, index: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: facts, times of each pass, memory of each pass, difference of the results."""
    row: Comparison = case.row(*case.ROWS[index], small=args.small)
    figures: dict[str, Any] = {}
    for key, timed in row.times.items():
        figures[f"{key}_ms"] = medians(timed, row.forms, args.repeats)
    for key in row.memory:
        peaks = figures[f"{key}_extra_mb"] = {}
        for form in row.forms:
            options = (1, get_context("spawn"), torch.set_num_threads, (args.threads,))
            with ProcessPoolExecutor(*options) as fresh:
                given = (case.row, case.ROWS[index], args.small, key, form)
                peaks[form] = fresh.submit(peak, *given).result()
    return {**row.facts, **figures, **(difference(row) if row.times else {})}


def line(row: dict[str, Any]) -> str:
    """Each figure of a row; of two that are compared also theirs over ours."""
    words = []
    for key, value in row.items():
        words.append(f"{key} {value}")
        if isinstance(value, dict) and "ours" in value:
            ours, theirs = value.values()
            words[-1] = f"{key} {ours} {theirs}" + (f" {theirs / ours:.1f}x" if ours else "")
    return "  ".join(words)


if __name__ == "__main__":
    main()
