"""Where figures are kept: one JSON and one table for each GPU in benchmarks/results/.

The predictions beside the figures come from results/counted.md.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.shapes import Floor
from benchmarks.table import markdown
from benchmarks.timing.bench import Case

Row = dict[str, Any]

# for each column the key in a row and the format of its number
COLUMNS = {
    "case": ("case", ""), "provider": ("provider", ""), "ms": ("ms", ",.4g"),
    "predicted": ("predicted_ms", ",.4g"), "spread": ("spread", ".1%"), "ratio": ("ratio", ".2f"),
    "to": ("peer", ""), "of floor": ("of_floor", ".0%"), "of nominal": ("of_nominal", ".0%"),
    "GB/s": ("gb_per_s", ",.0f"), "TFLOP/s": ("tflop_per_s", ",.1f"),
    "peak MB": ("peak_mb", ",.0f"), "SM MHz": ("sm_mhz", ",.0f"), "how": ("how", ""),
}  # fmt: skip
HEAD = "Written by `python -m benchmarks.timing`; what the columns mean: `benchmarks/README.md`."


@functools.cache
def counted() -> dict[tuple[str, str], Floor]:
    """Per token, sequence or frame: bytes from memory and FLOPs, by row and provider."""
    lines = (RESULTS / "counted.md").read_text(encoding="utf-8").splitlines()
    heads, _, *body = (line.strip("| ").split(" | ") for line in lines if line.startswith("|"))
    cold, dot = heads.index("cold kB"), heads.index("dot MFLOP")
    return {
        (row[0], row[1]): Floor(1e3 * float(row[cold].replace(",", "")), 1e6 * float(row[dot]))
        for row in body
    }


def predicted(case: Case, provider: str) -> Floor | None:
    """The bytes and FLOPs of a provider at a case, as counted; None where they were not."""
    name, _, rest = case.bench.name.partition(", ")
    backward = "backward" * case.backward
    for words in ((name, case.shape.name, rest, backward), (name, rest, backward)):
        row = ", ".join(filter(None, words))
        if each := counted().get((row, "tvkernels" if provider == "ours" else provider)):
            return Floor(each.bytes * case.count, each.flops * case.count)
    return None


class Results:
    """The files of one GPU; without a folder nothing is written.

    Args:
        cases: the names of all cases there are, in the order of the table.
        facts: what the figures of this run depend on, "GPU" among them.
    """

    def __init__(self, folder: Path | None, cases: Sequence[str], facts: dict[str, str]) -> None:
        name = re.sub(r"\W+", "-", facts["GPU"].lower()).strip("-")
        self.path = None if folder is None else folder / f"{name}.json"
        self.cases, self.facts = cases, facts

    def add(self, case: str, rows: Sequence[Row]) -> None:
        """Write the rows of a case; cases that there are no more are dropped."""
        if self.path is None:
            return
        known = json.loads(self.path.read_text("utf-8"))["cases"] if self.path.exists() else {}
        known[case] = {"facts": self.facts, "rows": list(rows)}
        figures = {
            "cases": {name: known[name] for name in self.cases if name in known},
            "not measured": [name for name in self.cases if name not in known],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", "utf-8")
        self.path.with_suffix(".md").write_text(rendered(figures), "utf-8")


def rendered(figures: dict[str, Any]) -> str:
    """The JSON of one GPU as Markdown: a table for each run of consecutive cases."""
    parts = [HEAD]
    for facts, cases in itertools.groupby(figures["cases"].values(), lambda case: case["facts"]):
        parts.append(", ".join(f"{name} {value}" for name, value in facts.items()) + ":")
        parts.append("\n".join(table(row for case in cases for row in case["rows"])))
    if figures["not measured"]:
        parts.append(f"Not measured: {'; '.join(figures['not measured'])}.")
    return "\n\n".join(parts) + "\n"


def table(rows: Iterable[Row]) -> list[str]:
    """Rows as the lines of a Markdown table."""
    return markdown([*COLUMNS, "note"], map(_cells, rows))


def _cells(row: Row) -> list[str]:
    throttled = f"throttled: {row['throttled']}" if row.get("throttled") else ""
    notes = "; ".join(filter(None, (row.get("reason"), row.get("note"), throttled)))
    figures = [format(row[k], form) if k in row else "-" for k, form in COLUMNS.values()]
    return [*figures, notes or "-"]
