"""The part "contracts": the kernels' tests, compiled, shared among processes by pytest-xdist.

Compiling takes the time, on one core for each kernel. A process that dies or loses its GPU
(contracts_plugin.py) costs the test that it ran; another one takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import util
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from benchmarks import ROOT

NEEDED = ("pytest", "xdist", "hypothesis", "safetensors")
# folders of tests/ that run no kernel of ours through an op, or not in this way
WITHOUT = ("benchmarks", "machine_code", "peers", "data")
# a test that runs kernels is marked so, or takes the fixture that marks it
TRITON = re.compile(r'mark\.triton|"backend"|\bbackend: str|def test\w*\([^)]*\bbackend\b')
# these compile longest, so they start first
FIRST = ("ssd", "gated_cross_attention", "tome")
KINDS = ("passed", "failed", "skipped")
MOST_NAMED = 20
# pytest is interrupted so long before it is killed
GRACE_SECONDS = 20.0

Row = dict[str, Any]


def files() -> list[str]:
    """The test files that have kernels to compile, the slowest first."""
    every = (ROOT / "tests").glob("*/**/test_*.py")
    paths = [p for p in every if p.relative_to(ROOT).parts[1] not in WITHOUT]
    found = [p for p in paths if TRITON.search(p.read_text(encoding="utf-8"))]
    names = sorted(p.relative_to(ROOT).as_posix() for p in found)
    return sorted(names, key=lambda name: not any(op in name for op in FIRST))


def chosen(part: str) -> list[str]:
    """The files of "contracts", or of "contracts:ops/ssd": those whose names begin so."""
    begin = "tests/" + part.removeprefix("contracts").removeprefix(":")
    return [name for name in files() if name.startswith(begin)]


def missing() -> list[str]:
    """The packages that the tests need and that are not installed."""
    return [name for name in NEEDED if util.find_spec(name) is None]


def total(rows: Iterable[Row]) -> str:
    """All rows as one sentence."""
    counts = sum((Counter({kind: row[kind] for kind in KINDS}) for row in rows), Counter())
    return "contracts: " + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)


def run(
    names: Sequence[str], seconds: float, log: Path | None = None, workers: int = 0
) -> list[Row]:
    """Run the files for at most `seconds`: a row for each file. Tracebacks go to `log`."""
    # two cores stay free to drive the GPU
    workers = workers or max(1, min(14, (os.cpu_count() or 1) - 2))
    with tempfile.TemporaryDirectory() as folder:
        report, plan, output = (Path(folder) / name for name in ("report.xml", "plan", "output"))
        # not --dist loadgroup: it hangs when a worker crashes, since it gives the next one only one
        # test, and a worker starts a test when it knows the test after it
        command = [sys.executable, "-m", "pytest", *names, "-q", "--tb=short", "-m", "triton"]
        command += ["-n", str(workers), "--dist", "load", "--maxschedchunk", "1"]
        command += [
            "-p",
            "benchmarks.timing.contracts_plugin",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
        ]
        command += ["--continue-on-collection-errors"]
        # the project's own options need pytest-benchmark; only xunit1 writes the file's name
        command += ["-o", "addopts=", "-o", "junit_family=xunit1"]
        with output.open("w") as out:
            environment = _environment() | {"CONTRACTS_FOLDER": folder}
            stopped = _stopped(command, environment, out, seconds)
        planned = json.loads(plan.read_text()) if plan.exists() else {}
        rows = _rows(report, planned, stopped, log)
        if not rows and not stopped:
            last = output.read_text(errors="replace").strip().splitlines()[-1:]
            reason = f"no test was found: {''.join(last)[:200]}"
            rows = [{"case": "pytest", **dict.fromkeys(KINDS, 0), "failed": 1, "seconds": 0}]
            rows[0]["reason"] = reason
        return rows


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # a configuration that was timed beside other processes must not become a benchmark's choice
    cache = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton/cache"))
    cache = cache.with_name("contracts")
    return kept | {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}


def _stopped(
    command: Sequence[str], environment: dict[str, str], output: IO[str], seconds: float
) -> bool:
    """Whether pytest had to be interrupted after `seconds`; it still writes its report then."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        process.wait(max(0.0, seconds))
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        return True
    finally:
        process.kill()
        process.wait()


def _rows(report: Path, planned: dict[str, int], stopped: bool, log: Path | None) -> list[Row]:
    """A row for each file of pytest's report; `planned` is how many tests each file has."""
    tests: dict[str, dict[str, list[Element]]] = {name: {} for name in planned}
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
    for test in filter(lambda test: test.get("name"), cases):
        # a file that cannot be imported is named like a module
        file = test.get("file") or f"{test.get('name', '').replace('.', '/')}.py"
        tests.setdefault(file, {}).setdefault(test.get("name", ""), []).append(test)
    rows, failures = [], []
    for file, of in tests.items():
        kinds = {name: _kind(reports) for name, reports in of.items()}
        row: Row = {"case": file, **{k: list(kinds.values()).count(k) for k in KINDS}}
        seconds = sum(float(test.get("time", 0)) for reports in of.values() for test in reports)
        row["seconds"] = round(seconds, 1)
        texts = {name: _failure(of[name]) for name, kind in kinds.items() if kind == "failed"}
        failures += [f"== {file}::{name}\n{text}\n" for name, text in texts.items()]
        if texts:
            row["failures"] = [f"{name}: {_reason(text)}" for name, text in texts.items()]
            row["failures"] = row["failures"][:MOST_NAMED]
        left = planned.get(file, 0) - len(kinds)
        if stopped and left > 0:
            row["reason"] = f"stopped: its time was up, {left} of {planned[file]} not run"
        rows.append(row)
    if log is not None and failures:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("\n".join(failures), encoding="utf-8")
    return rows


def _kind(reports: Sequence[Element]) -> str:
    """The worst of what was reported of a test: its set-up, its call, its end."""
    tags = {child.tag for test in reports for child in test}
    if tags & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in tags else "passed"


def _failure(reports: Sequence[Element]) -> str:
    found = [c for test in reports for c in test if c.tag in ("failure", "error")]
    return str(found[0].text or found[0].get("message"))


def _reason(text: str) -> str:
    """The first line that pytest marks as the error's."""
    marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (marked or text.strip().splitlines()[-1:] or ["no text"])[0][:200]
