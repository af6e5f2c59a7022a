"""The files of figures: a rerun replaces what it measures anew."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.timing.store import Results, rendered, table

ROW = {"case": "norm, 2k", "provider": "ours", "ms": 0.03125, "spread": 0.012, "of_floor": 0.914}
ROW |= {"gb_per_s": 4021.0, "peer": "mamba-ssm", "ratio": 1.517, "how": "graph of 7, 20 rounds"}
ROW |= {"sm_mhz": 1755, "throttled": "power cap"}
REASON = {"case": "norm, 160k", "provider": "all", "reason": "does not fit: 30 GB, 20 GB are free"}


def results(folder: Path, cases: str = "abc", commit: str = "one") -> Results:
    return Results(folder, list(cases), {"GPU": "NVIDIA H200", "commit": commit})


def figures(folder: Path) -> dict:
    path = folder / "nvidia-h200.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == rendered(found)
    return found


def test_a_rerun_replaces_only_the_cases_that_it_measured(tmp_path: Path) -> None:
    first, second = results(tmp_path), results(tmp_path, commit="another")
    for case in "ba":
        first.add(case, [ROW])
    second.add("b", [ROW, REASON])
    found = figures(tmp_path)
    assert found["cases"] == {
        "a": {"facts": first.facts, "rows": [ROW]},
        "b": {"facts": second.facts, "rows": [ROW, REASON]},
    }
    # figures of two commits are in two tables
    assert re.findall(
        r"^GPU NVIDIA H200, commit (\w+):\n\n\| case \| provider \|", rendered(found), re.M
    ) == ["one", "another"]
    assert rendered(found).endswith("\n\nNot measured: c.\n")
    # a case that no longer exists is dropped
    results(tmp_path, cases="bc").add("c", [ROW])
    assert list(figures(tmp_path)["cases"]) == ["b", "c"]
    assert "Not measured" not in rendered(figures(tmp_path))


def test_a_row_as_a_line() -> None:
    head, _, number, reason = (line.strip("| ").split(" | ") for line in table([ROW, REASON]))
    assert dict(zip(head, number)) == {
        "case": "norm, 2k", "provider": "ours", "ms": "0.03125", "predicted": "-", "spread": "1.2%", "ratio": "1.52",
        "to": "mamba-ssm", "of floor": "91%", "of nominal": "-", "GB/s": "4,021", "TFLOP/s": "-",
        "peak MB": "-", "SM MHz": "1,755", "how": "graph of 7, 20 rounds", "note": "throttled: power cap",
    }  # fmt: skip
    assert reason == ["norm, 160k", "all", *"-" * 12, REASON["reason"]]


def test_our_tables_are_what_their_json_says() -> None:
    for path in RESULTS.glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "not measured" in found:
            assert path.with_suffix(".md").read_text(encoding="utf-8") == rendered(found)
