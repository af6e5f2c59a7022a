"""The part "contracts": which tests it runs, how processes share them, what it says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.timing import __main__ as command
from benchmarks.timing import contracts
from benchmarks.timing.store import Results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path, "no GPU")


def known(folder: Path) -> dict:
    text = (folder / "no-gpu.json").read_text(encoding="utf-8")
    return json.loads(text)["parts"]["contracts"]


def test_the_contracts_are_all_tests_that_have_kernels_to_run() -> None:
    """As pytest finds them by their marks, where Triton can run."""
    pytest.importorskip("triton")
    assert all((ROOT / name).exists() for name in contracts.files())
    start = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "triton", "tests"]
    start += [f"--ignore=tests/{folder}" for folder in contracts.WITHOUT]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*start, "-o", "addopts=", "-p", "no:cacheprovider"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    found = {line.partition("::")[0] for line in lines if "::" in line}
    assert found == set(contracts.files()), done.stdout[-2000:] + done.stderr[-2000:]


def test_a_part_of_the_contracts_is_named_as_its_files_begin() -> None:
    assert contracts.chosen("contracts") == contracts.files()
    norm = contracts.chosen("contracts:ops/test_rmsnorm") or contracts.chosen(
        "contracts:ops/rmsnorm"
    )
    assert norm
    assert set(norm) < set(contracts.files())
    assert contracts.chosen(f"contracts:{norm[0].removeprefix('tests/')}") == norm[:1]
    assert contracts.chosen("contracts:nowhere") == []


def test_without_pytest_the_contracts_say_so_in_one_line(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(contracts, "missing", lambda: ["pytest", "hypothesis"])
    assert command.run_part("contracts", 60, results, gpu=True) == 0
    line = "left out: pytest, hypothesis not installed"
    assert capsys.readouterr().out == f"contracts: {line}\n"
    part = known(tmp_path)
    assert part["notes"] == [line]
    assert part["left_out"] == contracts.files()


MIXED = """import os, pytest, time
pytestmark = pytest.mark.triton
def test_right(): pass
@pytest.mark.parametrize("x", ["a b", "c"])
def test_some(x): assert x == "c"
@pytest.mark.skip
def test_not(): pass
def test_dies(): os._exit(9)
def test_offsets_past_the_end(): time.sleep(0.2)
@pytest.fixture
def torn():
    yield
    raise ValueError("at its end")
def test_torn(torn): pass
"""


LOST = """import pytest
from benchmarks.timing import contracts_plugin
pytestmark = pytest.mark.triton
def test_first():
    contracts_plugin.lost = lambda: True
    raise RuntimeError("an illegal memory access was encountered")
@pytest.mark.parametrize("n", range(5))
def test_next(n): pass
"""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict], str]:
    """Rows and log of three files that two processes share."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "test_mixed.py").write_text(MIXED)
    (folder / "test_lost.py").write_text(LOST)
    (folder / "test_broken.py").write_text("import nowhere_to_be_found\n")
    files = [str(path) for path in sorted(folder.glob("test_*.py"))]
    rows = contracts.run(files, 300, folder / "failures.txt", workers=2)
    return {Path(row["case"]).name: row for row in rows}, (folder / "failures.txt").read_text()


def counts(row: dict) -> list[int]:
    return [row[kind] for kind in contracts.KINDS]


def test_processes_share_the_tests_and_another_follows_one_that_dies(mixed: tuple) -> None:
    rows, log = mixed
    assert counts(rows["test_mixed.py"]) == [3, 3, 1]
    torn, some = "test_torn: ValueError: at its end", "test_some[a b]: AssertionError: assert"
    failures = sorted(rows["test_mixed.py"]["failures"])
    assert failures[0].startswith("test_dies: worker 'gw")
    assert failures[1:] == [f"{some} 'a b' == 'c'", torn]
    assert "reason" not in rows["test_mixed.py"]
    assert "test_mixed.py::test_dies\nworker 'gw" in log
    assert counts(rows["test_broken.py"]) == [0, 1, 0]
    assert "No module named 'nowhere_to_be_found'" in rows["test_broken.py"]["failures"][0]


def test_a_lost_gpu_costs_the_test_that_lost_it(mixed: tuple) -> None:
    """Every later test of that process would fail too, and mean nothing."""
    row = mixed[0]["test_lost.py"]
    assert counts(row) == [5, 1, 0]
    (failure,) = row["failures"]
    assert failure == "test_first: RuntimeError: an illegal memory access was encountered"


def test_tests_that_take_too_long_are_stopped_with_what_they_had_shown(tmp_path: Path) -> None:
    """The second test says that it runs; its time is up then."""
    path, mark = tmp_path / "test_long.py", tmp_path / "runs"
    text = "import pathlib, time, pytest\npytestmark = pytest.mark.triton\ndef test_a(): pass\n"
    text += f"def test_b(): pathlib.Path({str(mark)!r}).touch(); time.sleep(600)\n"
    path.write_text(text + "def test_c(): pass\n")
    wait = subprocess.Popen.wait

    def until_it_runs(process: subprocess.Popen, timeout: float | None = None) -> int:
        while timeout == 300 and process.poll() is None:
            if mark.exists():
                raise subprocess.TimeoutExpired("pytest", timeout)
            time.sleep(0.1)
        return wait(process, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", until_it_runs)
        (row,) = contracts.run([str(path)], 300, workers=1)
    assert counts(row) == [1, 0, 0]
    assert row["reason"] == "stopped: its time was up, 2 of 3 not run"


def test_the_contracts_rows_are_kept_beside_those_of_other_files(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["tests/ops/test_a.py", "tests/ops/test_b.py"]
    monkeypatch.setattr(contracts, "files", lambda: names)
    figures = {"passed": 2, "failed": 0, "skipped": 0, "seconds": 1.0}

    def run(names: list[str], seconds: float, log: Path) -> list[dict]:
        assert log == tmp_path / "no-gpu-failures.txt"
        return [{"case": n, **figures, "failed": int(n.endswith("b.py"))} for n in names]

    monkeypatch.setattr(contracts, "run", run)
    assert command.run_part("contracts:ops/test_a", 60, results, gpu=True) == 0
    part = known(tmp_path)
    assert (list(part["cases"]), part["left_out"]) == (names[:1], [])
    assert command.run_part("contracts:ops/test_b", 60, results, gpu=True) == 1
    part = known(tmp_path)
    assert (list(part["cases"]), part["left_out"]) == (names, [])
