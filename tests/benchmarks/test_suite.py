"""`python -m benchmarks.suite`, its budget, its parts; the same files under pytest-benchmark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import contracts, suite
from benchmarks.record import Results
from benchmarks.rows import DeviceLost, Lab

ROOT = Path(__file__).parents[2]
PART = "selective_state_update"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "gpu_name", lambda: "no GPU")


def without_gpu() -> dict[str, str]:
    here = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return here | {"CUDA_VISIBLE_DEVICES": ""}


def parts_of(folder: Path) -> dict:
    return json.loads((folder / "no-gpu.json").read_text(encoding="utf-8"))["parts"]


def test_every_file_of_a_benchmark_is_a_part() -> None:
    files = {path.name for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert suite.parts() == ["contracts", *sorted(name[6:-3] for name in files)]
    assert all(suite.share(part) > 0 for part in suite.parts())
    assert suite.share("rmsnorm") == 70


def test_a_part_needs_torch_and_this_folder_only(tmp_path: Path) -> None:
    """No pytest, no pytest-benchmark, no hypothesis, nothing of the model's."""
    absent = "pytest pytest_benchmark hypothesis safetensors av PIL transformers timeviper_fast"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent.split()!r}))\n"
        "from benchmarks.suite import main\n"
        f"sys.exit(main(['--part', {PART!r}, '--results', {str(tmp_path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=without_gpu(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    part = parts_of(tmp_path)[PART]
    assert part["left_out"] == []
    assert len(part["cases"]) == 2
    for entry in part["cases"].values():
        assert [row["provider"] for row in entry["rows"]] == ["ours", "reference", "copy"]
        assert {"copy", "product"} <= set(entry["stamp"])
        for row in entry["rows"]:
            assert f"| {row['case']} | {row['provider']} |" in done.stdout


def test_pytest_runs_the_same_files() -> None:
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_attention_topk.py"]
    done = subprocess.run(
        [*command, "--benchmark-only", "-p", "no:cacheprovider"],
        cwd=ROOT, env=without_gpu(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout
    assert "| selection, small | repeated keys |" in done.stdout
    assert "test_case[selection, small-ours]" in done.stdout


# time


class Clock:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patch.setattr(suite.time, "monotonic", lambda: self.now)


def test_all_parts_fit_nine_minutes_even_if_each_has_to_be_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, ran = Clock(monkeypatch), []

    def run_process(command: list[str], seconds: float) -> int:
        ran.append(command[command.index("--part") + 1])
        clock.now += seconds
        return -9

    monkeypatch.setattr(suite, "run_process", run_process)
    assert suite.run_all(suite.TOTAL_SECONDS, tmp_path) == 9
    assert ran == suite.parts()
    assert clock.now <= 9 * 60
    notes = parts_of(tmp_path)["ssd"]["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("its process was ended after ")


def test_what_a_part_leaves_goes_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Clock(monkeypatch)
    budgets = []

    def run_process(command: list[str], seconds: float) -> int:
        budgets.append(float(command[command.index("--seconds") + 1]))
        return 0

    monkeypatch.setattr(suite, "run_process", run_process)
    assert suite.run_all(500, tmp_path) == 0
    assert budgets[-1] == pytest.approx(500, abs=0.1)
    assert budgets == sorted(budgets) or budgets[0] < budgets[-1]


def test_a_process_and_what_it_started_are_ended_in_time(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    assert suite.run_process([sys.executable, "-c", code], 3) == -signal.SIGKILL
    assert time.monotonic() - start < 20
    number = int(pid.read_text())
    for _ in range(50):
        stat = Path(f"/proc/{number}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the grandchild lives")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path, "no GPU")


def fake_run(lab: Lab, case: object) -> list[dict]:
    return [{"case": case.name, "provider": "ours", "ms": 1.0}]


def test_a_part_without_time_says_what_it_left_out(results: Results, tmp_path: Path) -> None:
    assert suite.run_part("rmsnorm", 0, results, gpu=False) == 0
    part = parts_of(tmp_path)["rmsnorm"]
    assert len(part["left_out"]) == 4
    assert part["notes"][-1] == "stopped: its time was up"


def test_an_interruption_keeps_what_was_measured(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(lab: Lab, case: object) -> list[dict]:
        if "backward" in case.name:
            raise KeyboardInterrupt
        return fake_run(lab, case)

    monkeypatch.setattr(Lab, "run", run)
    with pytest.raises(KeyboardInterrupt):
        suite.run_part("rmsnorm", 60, results, gpu=False)
    part = parts_of(tmp_path)["rmsnorm"]
    assert list(part["cases"]) == ["gated norm, small"]
    assert len(part["left_out"]) == 3


def test_a_lost_device_ends_the_part(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(lab: Lab, case: object) -> list[dict]:
        raise DeviceLost("mamba-ssm at norm: illegal address", fake_run(lab, case))

    monkeypatch.setattr(Lab, "run", run)
    assert suite.run_part("rmsnorm", 60, results, gpu=False) == 1
    part = parts_of(tmp_path)["rmsnorm"]
    assert part["notes"][-1].startswith("stopped, the GPU answers no more: mamba-ssm at norm")
    assert len(part["cases"]) == 1


def test_ours_being_wrong_is_an_exit_code(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"provider": "ours", "reason": "fails the contract: result 0"}
    monkeypatch.setattr(Lab, "run", lambda lab, case: [{"case": case.name, **wrong}])
    assert suite.run_part("rmsnorm", 60, results, gpu=False) == 1
    wrong["provider"] = "mamba-ssm"
    assert suite.run_part("rmsnorm", 60, results, gpu=False) == 0


# contracts


def test_the_contracts_are_the_kernels_tests() -> None:
    assert "tests/ops/test_rmsnorm.py" in contracts.files()
    assert all((ROOT / name).exists() for name in contracts.files())


def test_without_pytest_the_contracts_say_so_in_one_line(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(contracts, "missing", lambda: ["pytest", "hypothesis"])
    assert suite.run_part("contracts", 60, results, gpu=True) == 0
    line = "left out: pytest, hypothesis not installed"
    assert capsys.readouterr().out == f"contracts: {line}\n"
    part = parts_of(tmp_path)["contracts"]
    assert part["notes"] == [line]
    assert part["left_out"] == contracts.files()


MIXED = """import pytest, time
pytestmark = pytest.mark.triton
def test_right(): pass
@pytest.mark.parametrize("x", ["a b", "c"])
def test_some(x): assert x == "c"
@pytest.mark.skip
def test_not(): pass
"""


def test_a_file_of_tests_becomes_a_row(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test_mixed.py"
    path.write_text(MIXED)
    monkeypatch.setattr(contracts, "files", lambda: [str(path)])
    assert suite.run_part("contracts", 120, results, gpu=True) == 1
    (row,) = parts_of(tmp_path)["contracts"]["cases"][str(path)]["rows"]
    assert (row["passed"], row["failed"], row["skipped"]) == (2, 1, 1)
    assert [name.rpartition("::")[2] for name in row["failures"]] == ["test_some[a b]"]


def test_tests_that_take_too_long_are_stopped_with_what_they_had_shown(tmp_path: Path) -> None:
    path = tmp_path / "test_long.py"
    path.write_text(MIXED + "def test_z(): time.sleep(60)\n")
    row = contracts.run_file(str(path), time.monotonic() + 6)
    assert row is not None
    assert row["reason"] == "stopped: its time was up"
    assert row["passed"] == 2
    assert contracts.run_file(str(path), time.monotonic() - 1) is None


def test_tests_that_cannot_be_collected_are_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "test_broken.py"
    path.write_text("import nowhere_to_be_found\n")
    row = contracts.run_file(str(path), time.monotonic() + 60)
    assert row is not None
    assert row["failed"] == 1
    assert row["reason"].startswith("pytest ended with 2")
