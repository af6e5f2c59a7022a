"""The part "contracts": the kernels' tests, compiled, by as many processes as there are cores.

What takes long is compiling, on one core for each kernel. The processes share the tests one by one
(lane.py); one that dies, or loses its GPU, costs the test that it was at, and another begins.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import util
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from benchmarks import ROOT

__all__ = ["NEEDED", "WHERE", "chosen", "files", "missing", "run", "total"]

# where the lanes of a run find the folder that they share
WHERE = "CONTRACT_LANES"
NEEDED = ("pytest", "hypothesis", "safetensors")
FOLDERS = ("core", "ops", "model", "dropin")
# a test that has kernels to run says so, or takes the fixture that does
TRITON = re.compile(r'mark\.triton|"backend"|\bbackend: str')
KINDS = ("passed", "failed", "skipped")
MOST_NAMED = 20
POLL_SECONDS = 0.5

Row = dict[str, Any]


def files() -> list[str]:
    """The files of tests that have kernels to compile."""
    paths = [p for folder in FOLDERS for p in (ROOT / "tests" / folder).glob("test_*.py")]
    found = [p for p in paths if TRITON.search(p.read_text(encoding="utf-8"))]
    return sorted(p.relative_to(ROOT).as_posix() for p in found)


def chosen(part: str) -> list[str]:
    """The files of "contracts", or of "contracts:ops/test_ssd": those whose names begin so."""
    begin = "tests/" + part.removeprefix("contracts").removeprefix(":")
    return [name for name in files() if name.startswith(begin)]


def missing() -> list[str]:
    """What the tests need and this machine has not."""
    return [name for name in NEEDED if util.find_spec(name) is None]


def total(rows: Iterable[Row]) -> str:
    """All rows as one sentence."""
    figures = [sum(row[kind] for row in rows) for rows in [list(rows)] for kind in KINDS]
    return "contracts: " + ", ".join(f"{n} {kind}" for n, kind in zip(figures, KINDS))


def lanes_here() -> int:
    """Two cores stay for what drives the GPU."""
    return max(1, min(14, (os.cpu_count() or 1) - 2))


def run(
    names: Sequence[str],
    deadline: float,
    done: Callable[[str, Row], None],
    log: Path | None = None,
    lanes: int | None = None,
) -> None:
    """Run the files, `done(name, row)` whenever there is more to say of one.

    At `deadline` (time.monotonic()) all is stopped; rows are of what was shown until then. How
    tests failed is written to `log` whole.
    """
    if monotonic() >= deadline:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        running = [_begin(names, folder) for _ in range(lanes or lanes_here())]
        told: dict[str, Row] = {}
        try:
            while running and monotonic() < deadline:
                sleep(POLL_SECONDS)
                running = _still(running, names, folder)
                _tell(_rows(folder), told, done)
        finally:
            stopped = [process for process in running if process.poll() is None]
            for process in stopped:
                process.kill()
            for process in running:
                process.wait()
        _tell(_rows(folder, over=True, stopped=bool(stopped)), told, done)
        _explain(folder, log)


def _begin(names: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-m", "triton", *names]
    # without this project's options, one of which pytest-benchmark would have to be there for
    command += ["-o", "addopts=", "-p", "no:cacheprovider", "-p", "benchmarks.timing.lane"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {WHERE: str(folder), "OMP_NUM_THREADS": "1"}
    # choices that were timed among so many processes are no benchmark's
    cache = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton/cache"))
    environment["TRITON_CACHE_DIR"] = str(cache.with_name("contracts"))
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def _still(
    running: Sequence[subprocess.Popen[bytes]], names: Sequence[str], folder: Path
) -> list[subprocess.Popen[bytes]]:
    """What runs; a lane that died at a test is followed by another."""
    still = []
    for process in running:
        code = process.poll()
        if code is None:
            still.append(process)
        elif code not in (0, 1, 5) and _last(folder, process.pid):
            # the test that it was at is over too
            with (folder / f"{process.pid}.jsonl").open("a", encoding="utf-8") as file:
                died = {"outcome": "failed", "seconds": 0.0, "why": f"its process died ({code})"}
                file.write(json.dumps({"test": _last(folder, process.pid), **died}) + "\n")
            still.append(_begin(names, folder))
    return still


def _lines(path: Path) -> list[Row]:
    lines = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # half of a line, while it is written
                lines.append(json.loads(line))
    return lines


def _last(folder: Path, number: int) -> str | None:
    tests = [line["test"] for line in _lines(folder / f"{number}.jsonl") if "test" in line]
    return tests[-1] if tests else None


def _seen(folder: Path) -> tuple[dict[str, int], dict[str, list[Row]]]:
    """How many tests each file has, and what was said of each test."""
    plan: dict[str, int] = {}
    tests: dict[str, list[Row]] = {}
    for path in folder.glob("*.jsonl"):
        for line in _lines(path):
            plan |= line.get("plan", {})
            if "test" in line:
                tests.setdefault(line["test"], []).append(line)
    return plan, tests


def _rows(folder: Path, over: bool = False, stopped: bool = False) -> dict[str, Row]:
    plan, tests = _seen(folder)
    by_file: dict[str, dict[str, list[Row]]] = {name: {} for name in plan}
    for test, lines in tests.items():
        by_file.setdefault(test.partition("::")[0], {})[test] = lines
    rows = {name: _row(name, of, plan.get(name, 0), over) for name, of in by_file.items()}
    if over and not plan and not stopped:
        output = (folder / "output").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(output) if line.strip()), "")
        rows.setdefault("pytest", {"case": "pytest", **_counts([]), "failed": 1, "seconds": 0})
        rows["pytest"]["reason"] = f"no test was found: {last[:200]}"
    return {name: row for name, row in rows.items() if over or sum(_figures(row))}


def _row(name: str, tests: dict[str, list[Row]], planned: int, over: bool) -> Row:
    outcomes = {test: _outcome(lines) for test, lines in tests.items()}
    row: Row = {"case": name, **_counts(outcomes.values())}
    row["seconds"] = round(sum(x.get("seconds", 0) for of in tests.values() for x in of), 1)
    failures = [
        f"{test.partition('::')[2] or test}: {_reason(tests[test])}"
        for test, outcome in outcomes.items()
        if outcome == "failed"
    ]
    if failures:
        row["failures"] = failures[:MOST_NAMED]
    left = planned - sum(_figures(row))
    if over and left > 0:
        row["reason"] = f"stopped: its time was up, {left} of {planned} not run"
    return row


def _counts(outcomes: Any) -> Row:
    every = list(outcomes)
    return {kind: every.count(kind) for kind in KINDS}


def _figures(row: Row) -> list[int]:
    return [row[kind] for kind in KINDS]


def _outcome(lines: Sequence[Row]) -> str:
    """Of all that was said of a test (it began, its call, its end) the worst."""
    said = {line["outcome"] for line in lines}
    return next((kind for kind in ("failed", "skipped", "passed") if kind in said), "began")


def _reason(lines: Sequence[Row]) -> str:
    """The last line that pytest marks as the error's."""
    whole = next(line["why"] for line in lines if line["outcome"] == "failed")
    marked = [line[1:].strip() for line in whole.splitlines() if line.startswith("E ")]
    return (marked[0] if marked else whole.strip().splitlines()[-1])[:200]


def _tell(rows: dict[str, Row], told: dict[str, Row], done: Callable[[str, Row], None]) -> None:
    for name, row in rows.items():
        if told.get(name) != row:
            told[name] = row
            done(name, row)


def _explain(folder: Path, log: Path | None) -> None:
    failed = {
        test: line["why"]
        for test, lines in _seen(folder)[1].items()
        for line in lines
        if line["outcome"] == "failed"
    }
    if log is not None and failed:
        log.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(f"== {test}\n{why}\n" for test, why in sorted(failed.items()))
        log.write_text(text, encoding="utf-8")
