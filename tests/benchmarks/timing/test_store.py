"""The files of figures: parts merge, an interruption loses nothing, README shows nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.timing import store
from benchmarks.timing.store import Results, rendered, table

ROW = {"case": "norm, 2k", "provider": "ours", "ms": 0.03125, "spread": 0.012, "of_floor": 0.914}
ROW |= {"gb_per_s": 4021.0, "peer": "mamba-ssm", "ratio": 1.517, "how": "graph of 7, 20 rounds"}
REASON = {"case": "norm, 160k", "provider": "all", "reason": "does not fit: 30 GB, 20 GB are free"}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "figures", "NVIDIA H200")


def again(results: Results) -> Results:
    assert results.path is not None
    return Results(results.path.parent, results.gpu)


def known(results: Results) -> dict:
    assert results.path is not None
    text = results.path.with_suffix(".md").read_text(encoding="utf-8")
    found = json.loads(results.path.read_text(encoding="utf-8"))
    assert text == rendered(found)
    return found["parts"]


def test_one_file_per_gpu_with_what_it_was_measured_with(results: Results) -> None:
    results.plan("rmsnorm", ["norm, 2k"])
    results.add("rmsnorm", "norm, 2k", [ROW])
    assert results.path is not None
    assert results.path.name == "nvidia-h200.json"
    entry = known(results)["rmsnorm"]["cases"]["norm, 2k"]
    assert {"commit", "driver", "torch", "triton", "python", "date"} <= set(entry["stamp"])
    assert entry["rows"] == [ROW]


def test_parts_merge_and_a_rerun_replaces_only_what_it_measured(results: Results) -> None:
    results.plan("rmsnorm", ["a", "b"])
    results.add("rmsnorm", "a", [ROW])
    results.add("rmsnorm", "b", [ROW])
    other = again(results)
    other.plan("ssd", ["c"])
    other.add("ssd", "c", [REASON])
    # a second run that is interrupted behind its first case
    third = again(results)
    third.stamp = {"commit": "another"}
    third.plan("rmsnorm", ["a", "b"])
    third.add("rmsnorm", "a", [{**ROW, "ms": 1.0}])
    parts = known(results)
    assert list(parts) == ["rmsnorm", "ssd"]
    assert parts["ssd"]["cases"]["c"]["rows"] == [REASON]
    assert parts["rmsnorm"]["cases"]["a"]["rows"][0]["ms"] == 1.0
    assert parts["rmsnorm"]["cases"]["b"]["rows"][0]["ms"] == 0.03125
    assert parts["rmsnorm"]["left_out"] == ["b"]
    assert parts["rmsnorm"]["cases"]["a"]["stamp"] == {"commit": "another"}
    # figures of two commits do not stand in one table
    text = rendered(json.loads(results.path.read_text()))
    assert "\ncommit another:\n" in text
    assert text.count("| case | provider |") == 3
    assert "- left out: b" in text


def test_a_case_that_is_no_more_is_dropped(results: Results) -> None:
    results.plan("rmsnorm", ["old"])
    results.add("rmsnorm", "old", [ROW])
    again(results).plan("rmsnorm", ["new"])
    assert known(results)["rmsnorm"] == {"left_out": ["new"], "notes": [], "cases": {}}


def test_a_file_is_old_or_new_never_half(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    results.plan("rmsnorm", ["a"])
    before = results.path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, path: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            results.add("rmsnorm", "a", [ROW])
    assert results.path.read_text() == before
    again(results).add("rmsnorm", "a", [ROW])
    assert known(results)["rmsnorm"]["left_out"] == []


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    results = Results(None, "no GPU")
    results.plan("rmsnorm", ["a"])
    results.add("rmsnorm", "a", [ROW])
    assert results.known["parts"]["rmsnorm"]["cases"]["a"]["rows"] == [ROW]


def test_a_row_as_a_line() -> None:
    head, _, number, reason = (line.strip("| ").split(" | ") for line in table([ROW, REASON]))
    assert dict(zip(head, number)) == {
        "case": "norm, 2k", "provider": "ours", "ms": "0.03125", "predicted": "-", "spread": "1.2%", "ratio": "1.52",
        "to": "mamba-ssm", "of floor": "91%", "of nominal": "-", "GB/s": "4,021", "TFLOP/s": "-",
        "peak MB": "-", "how": "graph of 7, 20 rounds", "note": "-",
    }  # fmt: skip
    assert reason == ["norm, 160k", "all", *"-" * 11, REASON["reason"]]
    contract = {"case": "t.py", "passed": 3, "failed": 1, "skipped": 0, "seconds": 2.5}
    assert (
        table([{**contract, "failures": ["t.py::a"]}])[-1] == "| t.py | 3 | 1 | 0 | 2.5 | t.py::a |"
    )


def test_outside_of_git_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert store.stamp()["commit"] == "unknown (no git checkout)"


def test_without_nvidia_smi_the_driver_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert store.stamp()["driver"] == "unknown"


# README


def disagreements(readme: str, folder: Path) -> list[str]:
    """Lines of README's tables of GPU figures that stand in no file of figures.

    Such a table is named by the comment `<!-- figures: NAME.md -->` above it and ends at the next
    empty line.
    """
    wrong = []
    for name, block in re.findall(r"<!-- figures: (\S+) -->\n+(.*?)(?:\n\n|\Z)", readme, re.S):
        path = folder / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        wrong += [line for line in block.splitlines() if line not in lines]
    return wrong


def test_readme_shows_only_figures_that_stand_in_a_file(results: Results) -> None:
    results.plan("rmsnorm", ["a"])
    results.add("rmsnorm", "a", [ROW])
    lines = table([ROW])
    assert results.path is not None
    folder, mark = results.path.parent, "<!-- figures: nvidia-h200.md -->\n"
    assert disagreements(mark + "\n".join(lines) + "\n\ntext", folder) == []
    better = lines[-1].replace("0.03125", "0.02125")
    assert disagreements(mark + "\n".join([*lines[:2], better]) + "\n\n", folder) == [better]
    assert disagreements(mark.replace("h200", "h100") + lines[0], folder) == [lines[0]]


def test_our_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert disagreements(text, RESULTS) == []
    tables = [path for path in RESULTS.glob("*.json") if "parts" in json.loads(path.read_text())]
    assert ("No kernel has run on a GPU yet" in text) == ("<!-- figures:" not in text)
    for path in tables:
        assert path.with_suffix(".md").read_text() == rendered(json.loads(path.read_text()))
    # whoever shows a device's speed elsewhere forgot the comment
    plain = re.sub(r"<!-- figures:.*?(?:\n\n|\Z)", "", text, flags=re.S)
    assert not re.search(r"\d\s?(GB/s|TB/s|TFLOP/s)\b", plain)
