"""Everything that a GPU can tell about the kernels, in at most nine minutes.

    python -m benchmarks.suite                  # contracts, then every benchmark
    python -m benchmarks.suite --part rmsnorm   # one part alone

A part is `contracts`, or NAME of a file bench_NAME.py. Each runs in a process of its own, so that a
kernel that brings its device down ends one part only, and has its share of the time; what a part
leaves unused goes to the next. Figures go to benchmarks/results/<gpu>.json and .md as they come.
Needs torch, Triton and this folder's parent as the working directory; the contracts need pytest,
hypothesis and safetensors too. Without a GPU everything runs small on the CPU, and figures are
written only where --results says.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import contracts
from benchmarks.record import RESULTS, Results, gpu_name, table
from benchmarks.rows import DeviceLost, Lab, Row

__all__ = ["main", "parts", "run_part"]

ROOT = Path(__file__).parents[1]
TOTAL_SECONDS = 520.0
# shares of the time: of the contracts, and of a bench_<op>.py that does not say SECONDS
CONTRACT_SECONDS, PART_SECONDS = 130.0, 45.0
# a part that does not stop by itself is ended so long after its time
GRACE_SECONDS = 10.0


def parts() -> list[str]:
    """The contracts, then every bench_<op>.py."""
    return [
        "contracts",
        *sorted(p.stem.removeprefix("bench_") for p in Path(__file__).parent.glob("bench_*.py")),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=parts(), help="this part alone")
    parser.add_argument("--seconds", type=float, help="time for all parts, or for the one")
    parser.add_argument("--results", type=Path, help="folder of the figures")
    args = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    if gpu and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    folder = args.results.resolve() if args.results else RESULTS if gpu else None
    # what this process started ends with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if args.part is None:
        if not gpu:
            print("no GPU: small shapes on the CPU, which say nothing about speed")
        return run_all(TOTAL_SECONDS if args.seconds is None else args.seconds, folder)
    results = Results(folder, gpu_name())
    seconds = float("inf") if args.seconds is None else args.seconds
    return run_part(args.part, seconds, results, gpu)


def run_all(seconds: float, folder: Path | None) -> int:
    """Every part in its own process; the worst exit code."""
    start, worst = time.monotonic(), 0
    shares = {part: share(part) for part in parts()}
    where = [] if folder is None else ["--results", str(folder)]
    while shares:
        part = next(iter(shares))
        left = seconds - (time.monotonic() - start)
        budget = max(1.0, left * shares[part] / sum(shares.values()))
        del shares[part]
        print(f"== {part}, at most {budget:.0f} s of {max(0.0, left):.0f}", flush=True)
        command = [sys.executable, "-m", "benchmarks.suite", "--part", part]
        code = run_process([*command, "--seconds", f"{budget:.1f}", *where], budget + GRACE_SECONDS)
        if code < 0:
            sentence = (
                f"its process was ended after {budget + GRACE_SECONDS:.0f} s, or died ({code})"
            )
            Results(folder, gpu_name()).note(part, sentence)
            print(f"{part}: {sentence}", flush=True)
        worst = max(worst, abs(code))
    print(f"== done in {time.monotonic() - start:.0f} s", flush=True)
    return worst


def run_process(command: Sequence[str], seconds: float) -> int:
    """The exit code; negative where the process, with all that it started, had to be ended."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def share(part: str) -> float:
    if part == "contracts":
        return CONTRACT_SECONDS
    text = (Path(__file__).parent / f"bench_{part}.py").read_text(encoding="utf-8")
    said = [line for line in text.splitlines() if line.startswith("SECONDS = ")]
    return float(said[0].split(" = ")[1]) if said else PART_SECONDS


def run_part(part: str, seconds: float, results: Results, gpu: bool) -> int:
    """One part, here; 1 where something of ours is wrong."""
    deadline = time.monotonic() + seconds
    if part == "contracts":
        return run_contracts(deadline, results, gpu)
    return run_benchmarks(part, Lab(gpu, deadline), results)


def run_contracts(deadline: float, results: Results, gpu: bool) -> int:
    names = contracts.files()
    results.plan("contracts", names)
    missing = contracts.missing()
    if missing or not gpu:
        sentence = f"left out: {', '.join(missing)} not installed" if missing else ""
        sentence = sentence or "left out: nothing compiles without a GPU (make test interprets)"
        results.note("contracts", sentence)
        print(f"contracts: {sentence}", flush=True)
        return 0
    wrong = 0

    def done(name: str, row: Row) -> None:
        nonlocal wrong
        wrong |= row["failed"] > 0
        results.add("contracts", name, [row])
        print(table([row])[-1], flush=True)

    contracts.run(names, deadline, done)
    return wrong


def run_benchmarks(part: str, lab: Lab, results: Results) -> int:
    module = importlib.import_module(f"benchmarks.bench_{part}")
    cases = [case for bench in module.BENCHES for case in bench.cases(small=not lab.gpu)]
    results.plan(part, [case.name for case in cases])
    for name, why in lab.absent.items():
        results.note(part, f"{name}: {why}")
    bandwidth, flops = lab.yardstick
    results.stamp["copy"] = f"{bandwidth / 1e9:,.0f} GB/s"
    results.stamp["product"] = f"{flops / 1e12:,.1f} TFLOP/s"
    print("\n".join(table([])), flush=True)
    wrong = 0
    for case in cases:
        if time.monotonic() >= lab.deadline:
            results.note(part, "stopped: its time was up")
            break
        try:
            rows = lab.run(case)
        except DeviceLost as lost:
            results.add(part, case.name, lost.rows)
            results.note(part, f"stopped, the GPU answers no more: {lost}")
            return 1
        results.add(part, case.name, rows)
        print("\n".join(table(rows)[2:]), flush=True)
        wrong |= any(
            row["provider"] == "ours" and row.get("reason", "").startswith("fails the contract")
            for row in rows
        )
    return wrong


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
