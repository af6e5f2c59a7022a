"""Everything that a GPU can tell about the kernels, in at most nine minutes.

    python -m benchmarks.timing                            # contracts, then every benchmark
    python -m benchmarks.timing --part ssd rmsnorm         # these parts
    python -m benchmarks.timing --part contracts:ops/test_ssd

A part is `contracts`, `contracts:` and how names of files under tests/ begin, or NAME of a file
bench_NAME.py. Of several, each runs in a process of its own, so that a kernel that brings its
device down ends one part only, and has its share of the time; what a part leaves unused goes to the
next. Figures go to benchmarks/results/<gpu>.json and .md as they come.
Needs torch, Triton and this folder's parent as the working directory; the contracts need pytest,
hypothesis and safetensors too. Without a GPU everything runs small on the CPU, and figures are
written only where --results says.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.timing import contracts
from benchmarks.timing.measure import DeviceLost, Lab, Row
from benchmarks.timing.precompile import compiled_together
from benchmarks.timing.store import RESULTS, Results, gpu_name, table

__all__ = ["main", "parts", "run_part"]

TOTAL_SECONDS = 520.0
# shares of the time: of the contracts, and of a bench_<op>.py that does not say SECONDS
CONTRACT_SECONDS, PART_SECONDS = 130.0, 45.0
# a part is told to stop so long before it is ended; of little time it is a fifth
GRACE_SECONDS = 10.0
# how often contracts say how far they are
TELL_SECONDS = 20.0


def parts() -> list[str]:
    """The contracts, then every bench_<op>.py: first what takes longest, and leaves most."""
    names = [p.stem.removeprefix("bench_") for p in (ROOT / "benchmarks/ops").glob("bench_*.py")]
    return ["contracts", *sorted(names, key=lambda name: (-share(name), name))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", help=f"these alone, of: {', '.join(parts())}")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="time for all of them")
    parser.add_argument("--results", type=Path, help="folder of the figures")
    args = parser.parse_args(arguments)
    wanted = args.part or parts()
    for part in wanted:
        if part not in parts() and not (part.startswith("contracts:") and contracts.chosen(part)):
            parser.error(f"there is no part {part!r}; there are {', '.join(parts())}")
    gpu = torch.cuda.is_available()
    if gpu and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    folder = args.results.resolve() if args.results else RESULTS if gpu else None
    # what this process started ends with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if len(wanted) > 1:
        if not gpu:
            print("no GPU: small shapes on the CPU, which say nothing about speed")
        return run_all(wanted, args.seconds, folder)
    return run_part(wanted[0], args.seconds, Results(folder, gpu_name()), gpu)


def run_all(wanted: Sequence[str], seconds: float, folder: Path | None) -> int:
    """Each part in its own process; the worst exit code."""
    start, worst = time.monotonic(), 0
    shares = {part: share(part) for part in wanted}
    where = [] if folder is None else ["--results", str(folder)]
    while shares:
        part = next(iter(shares))
        left = seconds - (time.monotonic() - start)
        limit = max(1.0, left * shares[part] / sum(shares.values()))
        budget = limit - min(GRACE_SECONDS, limit / 5)
        del shares[part]
        print(f"== {part}, at most {limit:.0f} s of {max(0.0, left):.0f}", flush=True)
        command = [sys.executable, "-m", "benchmarks.timing", "--part", part]
        code = run_process([*command, "--seconds", f"{budget:.1f}", *where], limit)
        if code < 0:
            sentence = f"its process was ended after {limit:.0f} s, or died ({code})"
            Results(folder, gpu_name()).note(part.partition(":")[0], sentence)
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
    if part.startswith("contracts"):
        return CONTRACT_SECONDS
    text = (ROOT / f"benchmarks/ops/bench_{part}.py").read_text(encoding="utf-8")
    said = [line for line in text.splitlines() if line.startswith("SECONDS = ")]
    return float(said[0].split(" = ")[1]) if said else PART_SECONDS


def run_part(part: str, seconds: float, results: Results, gpu: bool) -> int:
    """One part, here; 1 where something of ours is wrong."""
    deadline = time.monotonic() + seconds
    if part.startswith("contracts"):
        return run_contracts(contracts.chosen(part), deadline, results, gpu)
    return run_benchmarks(part, Lab(gpu, deadline), results)


def run_contracts(names: Sequence[str], deadline: float, results: Results, gpu: bool) -> int:
    results.plan("contracts", contracts.files(), names)
    missing = contracts.missing()
    if missing or not gpu:
        sentence = f"left out: {', '.join(missing)} not installed" if missing else ""
        sentence = sentence or "left out: nothing compiles without a GPU (make test interprets)"
        results.note("contracts", sentence)
        print(f"contracts: {sentence}", flush=True)
        return 0
    rows: dict[str, Row] = {}
    said = time.monotonic()

    def done(name: str, row: Row) -> None:
        nonlocal said
        rows[name] = row
        results.add("contracts", name, [row])
        if time.monotonic() - said > TELL_SECONDS:
            said = time.monotonic()
            print(contracts.total(rows.values()), flush=True)

    contracts.run(names, deadline, done, results.beside("failures.txt"))
    print(
        "\n".join(table(list(rows.values()))), contracts.total(rows.values()), sep="\n", flush=True
    )
    return int(any(row["failed"] for row in rows.values()))


def run_benchmarks(part: str, lab: Lab, results: Results) -> int:
    with compiled_together() if lab.gpu else contextlib.nullcontext():
        return run_cases(part, lab, results)


def run_cases(part: str, lab: Lab, results: Results) -> int:
    module = importlib.import_module(f"benchmarks.ops.bench_{part}")
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
