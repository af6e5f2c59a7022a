"""Where figures are kept: one JSON and one table per GPU under benchmarks/results/.

Every case is written as soon as it is measured, over an older measurement of itself and nothing
else, so parts may run alone, in any order, and be interrupted. Each case carries the versions and
the commit that it was measured with.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS, ROOT
from tvkernels.core.backend import triton_version

__all__ = ["RESULTS", "Results", "gpu_name", "stamp", "table"]


Row = dict[str, Any]

COLUMNS = (
    "case", "provider", "ms", "predicted", "spread", "ratio", "to", "of floor", "of nominal",
    "GB/s", "TFLOP/s", "peak MB", "how", "note",
)  # fmt: skip
CONTRACT_COLUMNS = ("tests", "passed", "failed", "skipped", "seconds", "note")


def gpu_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def stamp() -> dict[str, str]:
    """What a figure depends on beside the GPU."""
    return {
        "commit": _commit(),
        "driver": _driver(),
        "torch": torch.__version__,
        "triton": triton_version() or "not installed",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


class Results:
    """The file of one GPU; without a folder nothing is written."""

    def __init__(self, folder: Path | None, gpu: str) -> None:
        self.gpu = gpu
        name = re.sub(r"\W+", "-", gpu.lower()).strip("-")
        self.path = None if folder is None else folder / f"{name}.json"
        self.stamp = stamp()
        self.known: dict[str, Any] = {"gpu": gpu, "parts": {}}

    def add(self, part: str, case: str, rows: Sequence[Row]) -> None:
        """The rows of one case, measured just now."""
        with self._open() as known:
            entry = _part(known, part)
            entry["cases"][case] = {"stamp": self.stamp, "rows": list(rows)}
            entry["left_out"] = [name for name in entry["left_out"] if name != case]

    def plan(self, part: str, cases: Sequence[str], now: Sequence[str] | None = None) -> None:
        """What a run of `part` is about to measure: all of it is left out until it is not.

        now: of the part's cases those that are measured this time; None for all.
        """
        with self._open() as known:
            entry = _part(known, part)
            waiting = cases if now is None else {*now, *entry["left_out"]}
            entry |= {"left_out": [name for name in cases if name in waiting], "notes": []}
            # a case that is no more, or has another name
            entry["cases"] = {n: case for n, case in entry["cases"].items() if n in cases}

    def note(self, part: str, sentence: str) -> None:
        """Something to know about the last run of `part`."""
        with self._open() as known:
            _part(known, part)["notes"].append(sentence)

    def beside(self, name: str) -> Path | None:
        """A file of this GPU's beside the figures."""
        return None if self.path is None else self.path.with_name(f"{self.path.stem}-{name}")

    @contextlib.contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        """What is known, to be changed; another process may be at it, so it is read anew."""
        if self.path is None:
            yield self.known
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                self.known = json.loads(self.path.read_text(encoding="utf-8"))
            yield self.known
            _replace(self.path, json.dumps(self.known, indent=1, ensure_ascii=False) + "\n")
            _replace(self.path.with_suffix(".md"), rendered(self.known))


def rendered(known: dict[str, Any]) -> str:
    """The file of one GPU as Markdown."""
    lines = [
        f"# {known['gpu']}",
        "",
        "Written by `python -m benchmarks.timing`; what the columns mean:",
    ]
    lines += ["`benchmarks/README.md`.", ""]
    for part, entry in sorted(
        known["parts"].items(), key=lambda item: (item[0] != "contracts", item)
    ):
        lines += [f"## {part}", ""]
        cases = entry["cases"].values()
        for taken in {json.dumps(case["stamp"]): case["stamp"] for case in cases}.values():
            rows = [row for case in cases if case["stamp"] == taken for row in case["rows"]]
            lines += [", ".join(f"{k} {v}" for k, v in taken.items()) + ":", "", *table(rows), ""]
        lines += [f"- {sentence}" for sentence in entry["notes"]]
        if entry["left_out"]:
            lines.append(f"- left out: {'; '.join(entry['left_out'])}")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as the lines of a Markdown table."""
    contracts = any("passed" in row for row in rows)
    columns, cells = (CONTRACT_COLUMNS, _contract_cells) if contracts else (COLUMNS, _cells)
    body = [columns, tuple("---" for _ in columns), *map(cells, rows)]
    return ["| " + " | ".join(line) + " |" for line in body]


def _cells(row: Row) -> tuple[str, ...]:
    def number(key: str, form: str = "{:,.4g}") -> str:
        return form.format(row[key]) if key in row else "-"

    notes = [row.get("reason", ""), row.get("note", "")]
    ratio = number("ratio", "{:.2f}")
    return (
        row["case"], row["provider"], number("ms"), number("predicted_ms"),
        number("spread", "{:.1%}"), ratio,
        row.get("peer", "-"), number("of_floor", "{:.0%}"), number("of_nominal", "{:.0%}"),
        number("gb_per_s", "{:,.0f}"), number("tflop_per_s", "{:,.1f}"),
        number("peak_mb", "{:,.0f}"), row.get("how", "-"), "; ".join(filter(None, notes)) or "-",
    )  # fmt: skip


def _contract_cells(row: Row) -> tuple[str, ...]:
    counts = (str(row[key]) for key in ("passed", "failed", "skipped", "seconds"))
    notes = [row.get("reason", ""), *row.get("failures", [])]
    return (row["case"], *counts, "; ".join(filter(None, notes)) or "-")


def _part(known: dict[str, Any], part: str) -> dict[str, Any]:
    entry: dict[str, Any] = known["parts"].setdefault(
        part, {"left_out": [], "notes": [], "cases": {}}
    )
    return entry


def _replace(path: Path, text: str) -> None:
    """The old file or the new one, never half of one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _commit() -> str:
    """What is checked out; where a copy has no git, what COMMIT says it is of."""
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown (no git checkout)"
    changed = _output(
        "git", "-C", str(ROOT), "status", "--porcelain", "--", ".", ":!benchmarks/results"
    )
    return f"{commit} with changes" if changed else commit


def _driver() -> str:
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else "unknown"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
