"""The part "contracts": the kernels' tests, compiled, file by file, several files at once.

What compiles is the same whether one file waits for another or not, and a GPU has room for more.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import util
from pathlib import Path
from typing import Any

__all__ = ["NEEDED", "files", "run"]

ROOT = Path(__file__).parents[1]
NEEDED = ("pytest", "hypothesis", "safetensors")
OUTCOME = re.compile(r"^(\S+\.py::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
MOST_NAMED = 20


def files() -> list[str]:
    """The tests that have kernels to compile."""
    paths = [p for folder in ("core", "ops") for p in (ROOT / "tests" / folder).glob("test_*.py")]
    found = [p for p in paths if "mark.triton" in p.read_text(encoding="utf-8")]
    return sorted(p.relative_to(ROOT).as_posix() for p in found)


def missing() -> list[str]:
    """What the tests need and this machine has not."""
    return [name for name in NEEDED if util.find_spec(name) is None]


def run(names: Sequence[str], deadline: float, done: Callable[[str, dict[str, Any]], None]) -> None:
    """Run the files, `done(name, row)` after each; at `deadline` (time.monotonic()) stop them all.

    A file that was stopped has a row too, of what it had shown until then.
    """
    workers = max(1, min(4, (os.cpu_count() or 1) // 4))
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(run_file, name, deadline): name for name in names}
        for future in as_completed(waiting):
            row = future.result()
            if row is not None:
                done(waiting[future], row)


def run_file(name: str, deadline: float) -> dict[str, Any] | None:
    """The row of one file; None where there was no time to begin."""
    start = time.monotonic()
    if start >= deadline:
        return None
    command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-m", "triton", name]
    # without this project's options, one of which pytest-benchmark would have to be there for
    command += ["-o", "addopts=", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )
    stop = threading.Timer(deadline - start, process.kill)
    stop.start()
    outcomes: list[tuple[str, str]] = []
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        found = OUTCOME.match(line)
        if found:
            outcomes.append((found[1], found[2]))
        last = line.strip() or last
    code = process.wait()
    stopped = time.monotonic() >= deadline and code < 0
    stop.cancel()
    return _row(name, outcomes, round(time.monotonic() - start, 1), code, stopped, last)


def _row(
    name: str,
    outcomes: Sequence[tuple[str, str]],
    seconds: float,
    code: int,
    stopped: bool,
    last: str,
) -> dict[str, Any]:
    def count(*kinds: str) -> int:
        return sum(kind in kinds for _, kind in outcomes)

    row: dict[str, Any] = {"case": name, "passed": count("PASSED", "XPASS")}
    row |= {"failed": count("FAILED", "ERROR"), "skipped": count("SKIPPED", "XFAIL")}
    row["seconds"] = seconds
    failures = [test for test, kind in outcomes if kind in ("FAILED", "ERROR")]
    if failures:
        row["failures"] = failures[:MOST_NAMED]
    if stopped:
        row["reason"] = "stopped: its time was up"
    elif code not in (0, 1, 5):
        # collecting failed, or the process died
        row |= {"reason": f"pytest ended with {code}: {last}", "failed": max(1, row["failed"])}
    return row
