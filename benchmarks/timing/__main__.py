"""Every op beside its peers, at the shapes of the 9B model, on the GPU at hand.

    python -m benchmarks.timing                         # all ops
    python -m benchmarks.timing ssd rmsnorm             # these ops
    python -m benchmarks.timing ssd --only "scan, 160k" # the cases whose names contain this

Without a GPU every case runs small on the CPU, and figures are written only where --results says.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import RESULTS, ROOT
from benchmarks.ops import BENCHES
from benchmarks.timing import machine
from benchmarks.timing.bench import Case
from benchmarks.timing.measure import Lab
from benchmarks.timing.store import Results, table

OPS = sorted(BENCHES)


def cases(op: str, small: bool) -> list[Case]:
    return [case for bench in BENCHES[op] for case in bench.cases(small)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"these alone, of: {', '.join(OPS)}")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where figures are written")
    args = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    for op in set(args.ops) - set(OPS):
        parser.error(f"there is no op {op!r}; there are {', '.join(OPS)}")
    if gpu and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    chosen = {
        op: [case for case in cases(op, small=not gpu) if args.only in case.name]
        for op in args.ops or OPS
    }
    ops = [op for op in chosen if chosen[op]]
    if not ops:
        parser.error(f"no case's name contains {args.only!r}")
    folder = args.results.resolve() if args.results else RESULTS if gpu else None
    if len(ops) > 1:
        return run_each(ops, args.only, folder)
    return run_op(chosen[ops[0]], Lab(gpu), folder)


def run_each(ops: Sequence[str], only: str, folder: Path | None) -> int:
    """Each op in its own process; the worst exit code."""
    options = ["--only", only, *(["--results", str(folder)] if folder else [])]
    worst = 0
    for op in ops:
        print(f"== {op}", flush=True)
        command = [sys.executable, "-m", "benchmarks.timing", op, *options]
        code = subprocess.run(command, cwd=ROOT).returncode
        if code:
            print(f"{op}: exit code {code}", flush=True)
        worst = max(worst, abs(code))
    return worst


def run_op(chosen: Sequence[Case], lab: Lab, folder: Path | None) -> int:
    """Measure the cases in this process; 1 if a kernel of ours is wrong."""
    every = [case.name for op in OPS for case in cases(op, small=not lab.gpu)]
    facts = machine.facts() | lab.facts()
    results = Results(folder, every, facts)
    print(*(f"{name}: {value}" for name, value in facts.items()), *table([]), sep="\n", flush=True)
    wrong = False
    for case in chosen:
        rows = lab.run(case)
        results.add(case.name, rows)
        print(*table(rows)[2:], sep="\n", flush=True)
        reasons = [row.get("reason", "") for row in rows if row["provider"] == "ours"]
        wrong |= any(reason.startswith("fails the contract") for reason in reasons)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
