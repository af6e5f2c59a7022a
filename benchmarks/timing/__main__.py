"""Everything that a GPU can tell about the kernels, in at most nine minutes.

    python -m benchmarks.timing                            # contracts, then every benchmark
    python -m benchmarks.timing --part ssd rmsnorm         # these parts
    python -m benchmarks.timing --part contracts:ops/ssd   # these tests

Several parts run in a process each, so that a kernel that breaks the GPU ends one part only. A part
has a share of the time and leaves the next what it does not use. Figures go to
benchmarks/results/<gpu>.json and .md case by case. The contracts need pytest, pytest-xdist,
hypothesis and safetensors; the rest needs torch and Triton. Without a GPU everything runs small on
the CPU, and figures are written only where --results says.
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

from benchmarks import RESULTS, ROOT
from benchmarks.timing import contracts
from benchmarks.timing.measure import DeviceLost, Lab
from benchmarks.timing.precompile import compiled_together
from benchmarks.timing.store import Results, gpu_name, table

TOTAL_SECONDS = 520.0
CONTRACT_SECONDS = 130.0  # the contracts' share, as SECONDS in bench_<op>.py
# a part is told to stop so long before its process is killed; of little time, a fifth
GRACE_SECONDS = 30.0


def parts() -> list[str]:
    """The contracts, then every bench_<op>.py: the longest first, since it leaves the most."""
    names = [p.stem.removeprefix("bench_") for p in (ROOT / "benchmarks/ops").glob("bench_*.py")]
    return ["contracts", *sorted(names, key=lambda name: (-share(name), name))]


def share(part: str) -> float:
    if part.startswith("contracts"):
        return CONTRACT_SECONDS
    return float(importlib.import_module(f"benchmarks.ops.bench_{part}").SECONDS)


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
    # so that a killed part kills the processes that it started
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
    for part in wanted:
        left = seconds - (time.monotonic() - start)
        limit = max(1.0, left * shares[part] / sum(shares.values()))
        del shares[part]
        budget = limit - min(GRACE_SECONDS, limit / 5)
        print(f"== {part}, at most {limit:.0f} s of {max(0.0, left):.0f}", flush=True)
        command = [sys.executable, "-m", "benchmarks.timing", "--part", part]
        code = run_process([*command, "--seconds", f"{budget:.1f}", *where], limit)
        if code < 0:
            sentence = f"its process was killed after {limit:.0f} s, or died ({code})"
            Results(folder, gpu_name()).note(part.partition(":")[0], sentence)
            print(f"{part}: {sentence}", flush=True)
        worst = max(worst, abs(code))
    print(f"== done in {time.monotonic() - start:.0f} s", flush=True)
    return worst


def run_process(command: Sequence[str], seconds: float) -> int:
    """The exit code; negative where the process, with all that it started, had to be killed."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_part(part: str, seconds: float, results: Results, gpu: bool) -> int:
    """One part, in this process; 1 where a kernel of ours is wrong."""
    if part.startswith("contracts"):
        return run_contracts(contracts.chosen(part), seconds, results, gpu)
    with compiled_together() if gpu else contextlib.nullcontext():
        return run_cases(part, Lab(gpu, time.monotonic() + seconds), results)


def run_contracts(names: Sequence[str], seconds: float, results: Results, gpu: bool) -> int:
    results.plan("contracts", contracts.files(), names)
    missing = contracts.missing()
    if missing or not gpu:
        sentence = f"left out: {', '.join(missing)} not installed" if missing else ""
        sentence = sentence or "left out: nothing compiles without a GPU (make test interprets)"
        results.note("contracts", sentence)
        print(f"contracts: {sentence}", flush=True)
        return 0
    rows = contracts.run(names, seconds, results.beside("failures.txt"))
    for row in rows:
        results.add("contracts", row["case"], [row])
    print(*table(rows), contracts.total(rows), sep="\n", flush=True)
    return int(any(row["failed"] for row in rows))


def run_cases(part: str, lab: Lab, results: Results) -> int:
    module = importlib.import_module(f"benchmarks.ops.bench_{part}")
    cases = [case for bench in module.BENCHES for case in bench.cases(small=not lab.gpu)]
    results.plan(part, [case.name for case in cases])
    for name, why in lab.absent.items():
        results.note(part, f"{name}: {why}")
    bandwidth, flops = lab.yardstick
    results.stamp["copy"] = f"{bandwidth / 1e9:,.0f} GB/s"
    results.stamp["product"] = f"{flops / 1e12:,.1f} TFLOP/s"
    print(*table([]), sep="\n", flush=True)
    wrong = 0
    for case in cases:
        if time.monotonic() >= lab.deadline:
            results.note(part, "stopped: its time was up")
            break
        try:
            rows = lab.run(case)
        except DeviceLost as lost:
            results.add(part, case.name, lost.rows)
            results.note(part, f"stopped, the GPU is lost: {lost}")
            return 1
        results.add(part, case.name, rows)
        print(*table(rows)[2:], sep="\n", flush=True)
        reasons = [row.get("reason", "") for row in rows if row["provider"] == "ours"]
        wrong |= any(reason.startswith("fails the contract") for reason in reasons)
    return wrong


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
