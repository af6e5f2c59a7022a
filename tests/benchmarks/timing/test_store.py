"""The files of figures: reruns merge, nothing is half written, README shows nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.timing.store import Results, rendered, table

ROW = {"case": "norm, 2k", "provider": "ours", "ms": 0.03125, "spread": 0.012, "of_floor": 0.914}
ROW |= {"gb_per_s": 4021.0, "peer": "mamba-ssm", "ratio": 1.517, "how": "graph of 7, 20 rounds"}
ROW |= {"sm_mhz": 1755, "throttled": "power cap"}
REASON = {"case": "norm, 160k", "provider": "all", "reason": "does not fit: 30 GB, 20 GB are free"}


def results(folder: Path, cases: str = "abc", commit: str = "one") -> Results:
    return Results(folder / "figures", "NVIDIA H200", list(cases), {"commit": commit})


def figures(folder: Path) -> dict:
    path = folder / "figures/nvidia-h200.json"
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
        "a": {"facts": {"commit": "one"}, "rows": [ROW]},
        "b": {"facts": {"commit": "another"}, "rows": [ROW, REASON]},
    }
    # figures of two commits are in two tables
    assert re.findall(r"^commit \w+:$", rendered(found), re.M) == ["commit one:", "commit another:"]
    assert rendered(found).count("| case | provider |") == 2
    assert rendered(found).endswith("\n\nNot measured: c.\n")
    # a case that there is no more is dropped
    results(tmp_path, cases="bc").add("c", [ROW])
    assert list(figures(tmp_path)["cases"]) == ["b", "c"]
    assert "Not measured" not in rendered(figures(tmp_path))


def test_a_file_is_old_or_new_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results(tmp_path).add("a", [ROW])
    before = figures(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, path: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            results(tmp_path).add("b", [ROW])
    assert figures(tmp_path) == before


def test_without_a_folder_nothing_is_written() -> None:
    before = sorted(RESULTS.iterdir())
    Results(None, "no GPU", ["a"], {}).add("a", [ROW])
    assert sorted(RESULTS.iterdir()) == before


def test_a_row_as_a_line() -> None:
    head, _, number, reason = (line.strip("| ").split(" | ") for line in table([ROW, REASON]))
    assert dict(zip(head, number)) == {
        "case": "norm, 2k", "provider": "ours", "ms": "0.03125", "predicted": "-", "spread": "1.2%", "ratio": "1.52",
        "to": "mamba-ssm", "of floor": "91%", "of nominal": "-", "GB/s": "4,021", "TFLOP/s": "-",
        "peak MB": "-", "SM MHz": "1,755", "how": "graph of 7, 20 rounds", "note": "throttled: power cap",
    }  # fmt: skip
    assert reason == ["norm, 160k", "all", *"-" * 12, REASON["reason"]]


def disagreements(readme: str, folder: Path) -> list[str]:
    """Lines of README's tables of GPU figures that stand in no file of figures.

    The comment `<!-- figures: NAME.md -->` above such a table names the file. The table ends at the
    next empty line.
    """
    wrong = []
    for name, block in re.findall(r"<!-- figures: (\S+) -->\n+(.*?)(?:\n\n|\Z)", readme, re.S):
        path = folder / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        wrong += [line for line in block.splitlines() if line not in lines]
    return wrong


def test_a_figure_that_stands_in_no_file_is_found(tmp_path: Path) -> None:
    results(tmp_path).add("a", [ROW])
    lines, folder, mark = table([ROW]), tmp_path / "figures", "<!-- figures: nvidia-h200.md -->\n"
    assert disagreements(mark + "\n".join(lines) + "\n\ntext", folder) == []
    better = lines[-1].replace("0.03125", "0.02125")
    assert disagreements(mark + "\n".join([*lines[:2], better]) + "\n\n", folder) == [better]
    assert disagreements(mark.replace("h200", "h100") + lines[0], folder) == [lines[0]]


def test_our_readme_shows_only_figures_that_stand_in_a_file() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert disagreements(text, RESULTS) == []
    assert ("No kernel has run on a GPU yet" in text) == ("<!-- figures:" not in text)
    for path in RESULTS.glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "not measured" in found:
            assert path.with_suffix(".md").read_text(encoding="utf-8") == rendered(found)
    # a device's speed elsewhere in the text lacks that comment
    plain = re.sub(r"<!-- figures:.*?(?:\n\n|\Z)", "", text, flags=re.S)
    assert not re.search(r"\d\s?(GB/s|TB/s|TFLOP/s)\b", plain)
