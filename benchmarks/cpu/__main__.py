"""Our references on the CPU against other people's plain PyTorch.

    python -m benchmarks.cpu scan|conv|dropin|tome|resize [--threads 2] [--repeats 5] [--no-write]

Both run in one process on the same inputs, their calls alternating; times are medians. Memory is
how far a call raises the peak of a fresh process (Linux), after a small call that sets the
libraries up. The result goes to benchmarks/results/cpu_<case>.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from typing import Any

import torch

from benchmarks import RESULTS, ROOT
from benchmarks.cpu.measure import Comparison, difference, extra_peak_mb, machine, medians

CASES = ("scan", "conv", "dropin", "tome", "resize")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one short shape; writes no file")
    parser.add_argument("--no-write", action="store_true")
    # the memory of one call, which the fresh process prints
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case = importlib.import_module(f"benchmarks.cpu.{args.case}")
    if args.peak:
        print(peak(case, args.small, *args.peak))
        return
    rows = []
    for index in range(1 if args.small else len(case.ROWS)):
        rows.append(measure(case, index, args))
        print(line(rows[-1]), flush=True)
    if not (args.no_write or args.small):
        text = json.dumps({**machine(args.threads), **case.FACTS, "rows": rows}, indent=1) + "\n"
        (RESULTS / f"cpu_{args.case}.json").write_text(text, encoding="utf-8")


def measure(case: Any, index: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: facts, times of each pass, memory of each pass, difference of the results."""
    row: Comparison = case.row(*case.ROWS[index], small=args.small)
    figures: dict[str, Any] = {}
    for key, timed in row.times.items():
        figures[f"{key}_ms"] = medians(timed, row.forms, args.repeats)
    for key in row.memory:
        peaks = {form: peak_elsewhere(args, str(index), key, form) for form in row.forms}
        figures[f"{key}_extra_mb"] = peaks
    return {**row.facts, **figures, **difference(row)}


def peak_elsewhere(args: argparse.Namespace, *which: str) -> float | None:
    """`peak` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.cpu", args.case, "--threads", str(args.threads)]
    command += ["--small"] * args.small + ["--peak", *which]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    options = {"cwd": ROOT, "env": environment, "check": True, "text": True}
    last = subprocess.run(command, stdout=subprocess.PIPE, **options).stdout.split()[-1]
    return None if last == "None" else float(last)


def peak(case: Any, small: bool, index: str, name: str, form: str) -> float | None:
    """Megabytes that one call needs beyond its inputs, in this process."""

    def extra(small: bool) -> float | None:
        with case.row(*case.ROWS[int(index)], small=small).memory[name](form) as run:
            return extra_peak_mb(run)

    # the first call sets the libraries up
    extra(small=True)
    return extra(small)


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
