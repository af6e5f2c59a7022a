"""Our references on the CPU against other people's plain PyTorch.

    python -m benchmarks.cpu scan|conv|dropin|tome [--threads 2] [--repeats 5] [--no-write]

Both run in one process on the same inputs, their calls alternating; times are medians. Memory is
how far a call raises the peak of a process (Linux), for scan and tome of a fresh process each. The
result goes to benchmarks/results/cpu_<case>.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
from typing import Any

import torch

from benchmarks import RESULTS
from benchmarks.cpu.measure import machine

CASES = ("scan", "conv", "dropin", "tome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one short shape; writes no file")
    parser.add_argument("--no-write", action="store_true")
    # the memory of one call, which the fresh process prints
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case = importlib.import_module(f"benchmarks.cpu.{args.case}")
    if args.peak:
        print(case.peak(*args.peak))
        return
    facts = machine(args.threads) | case.FACTS
    rows = []
    for row in case.rows(args.repeats, args.threads, args.small):
        rows.append(row)
        print(line(row), flush=True)
    if not (args.no_write or args.small):
        text = json.dumps({**facts, "rows": rows}, indent=1) + "\n"
        (RESULTS / f"cpu_{args.case}.json").write_text(text, encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    """Each figure of a row; of two that are compared also theirs over ours."""
    words = []
    for key, value in row.items():
        if isinstance(value, dict) and "ours" in value:
            ours, theirs = value["ours"], next(x for name, x in value.items() if name != "ours")
            ratio = f" {theirs / ours:.1f}x" if ours and theirs else ""
            words.append(f"{key} {ours} {theirs}{ratio}")
        elif isinstance(value, dict) and key != "shape":
            words.append(f"{key}: {line(value)}")
        else:
            words.append(f"{key} {value}")
    return "  ".join(words)


if __name__ == "__main__":
    main()
