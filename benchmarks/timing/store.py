"""Where figures are kept: one JSON and one table per GPU under benchmarks/results/.

Every case is written as soon as it is measured and replaces its own older measurement only, so
parts may run alone, in any order, and be interrupted. Each case carries the versions and the commit
that it was measured with.
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

from benchmarks import ROOT
from benchmarks.table import markdown
from tvkernels.core.backend import triton_version

Row = dict[str, Any]

# of each column the key in a row and the format of its number
COLUMNS = {
    "case": ("case", ""), "provider": ("provider", ""), "ms": ("ms", ",.4g"),
    "predicted": ("predicted_ms", ",.4g"), "spread": ("spread", ".1%"), "ratio": ("ratio", ".2f"),
    "to": ("peer", ""), "of floor": ("of_floor", ".0%"), "of nominal": ("of_nominal", ".0%"),
    "GB/s": ("gb_per_s", ",.0f"), "TFLOP/s": ("tflop_per_s", ",.1f"),
    "peak MB": ("peak_mb", ",.0f"), "how": ("how", ""),
}  # fmt: skip
COUNTS = ("passed", "failed", "skipped", "seconds")
CONTRACTS = {"tests": ("case", ""), **{name: (name, "") for name in COUNTS}}


def gpu_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def stamp() -> dict[str, str]:
    """The versions that a figure depends on."""
    return {
        "commit": _commit(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        .partition("\n")[0] or "unknown",
        "torch": torch.__version__,
        "triton": triton_version() or "not installed",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }  # fmt: skip


class Results:
    """The file of one GPU; without a folder nothing is written."""

    def __init__(self, folder: Path | None, gpu: str) -> None:
        self.gpu = gpu
        name = re.sub(r"\W+", "-", gpu.lower()).strip("-")
        self.path = None if folder is None else folder / f"{name}.json"
        self.stamp = stamp()
        self.known: dict[str, Any] = {"gpu": gpu, "parts": {}}

    def plan(self, part: str, cases: Sequence[str], now: Sequence[str] | None = None) -> None:
        """Announce a run: each of its cases is left out until it is added.

        now: the cases that this run measures; None for all.
        """
        with self._entry(part) as entry:
            waiting = cases if now is None else {*now, *entry["left_out"]}
            entry |= {"left_out": [name for name in cases if name in waiting], "notes": []}
            # a case that was renamed or removed
            entry["cases"] = {n: case for n, case in entry["cases"].items() if n in cases}

    def add(self, part: str, case: str, rows: Sequence[Row]) -> None:
        """The rows of a case, as soon as they are measured."""
        with self._entry(part) as entry:
            entry["cases"][case] = {"stamp": self.stamp, "rows": list(rows)}
            entry["left_out"] = [name for name in entry["left_out"] if name != case]

    def note(self, part: str, sentence: str) -> None:
        """A sentence below the table of the last run of `part`."""
        with self._entry(part) as entry:
            entry["notes"].append(sentence)

    def beside(self, name: str) -> Path | None:
        """The path of another file of this GPU."""
        return None if self.path is None else self.path.with_name(f"{self.path.stem}-{name}")

    @contextlib.contextmanager
    def _entry(self, part: str) -> Iterator[dict[str, Any]]:
        """A part, to be changed. It is read again, since another process may have written."""
        empty: dict[str, Any] = {"left_out": [], "notes": [], "cases": {}}
        if self.path is None:
            yield self.known["parts"].setdefault(part, empty)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                self.known = json.loads(self.path.read_text(encoding="utf-8"))
            yield self.known["parts"].setdefault(part, empty)
            _replace(self.path, json.dumps(self.known, indent=1, ensure_ascii=False) + "\n")
            _replace(self.path.with_suffix(".md"), rendered(self.known))


def rendered(known: dict[str, Any]) -> str:
    """The file of one GPU as Markdown."""
    head = "Written by `python -m benchmarks.timing`; what the columns mean:"
    lines = [f"# {known['gpu']}", "", head, "`benchmarks/README.md`.", ""]
    for part, entry in sorted(known["parts"].items(), key=lambda x: (x[0] != "contracts", x)):
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
    columns = CONTRACTS if any("passed" in row for row in rows) else COLUMNS

    def cells(row: Row) -> list[str]:
        notes = [row.get("reason", ""), *row.get("failures", []), row.get("note", "")]
        figures = [format(row[k], form) if k in row else "-" for k, form in columns.values()]
        return [*figures, "; ".join(filter(None, notes)) or "-"]

    return markdown([*columns, "note"], map(cells, rows))


def _replace(path: Path, text: str) -> None:
    """The old file or the new one, never half of one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _commit() -> str:
    """The commit of the checkout; of a copy without git, what COMMIT says."""
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    git = ("git", "-C", str(ROOT))
    commit = _output(*git, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown (no git checkout)"
    changed = _output(*git, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{commit} with changes" if changed else commit


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
