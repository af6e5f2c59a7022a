"""`python -m benchmarks.timing`, its budget, its parts; the same files under pytest-benchmark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.timing import __main__ as suite
from benchmarks.timing import contracts
from benchmarks.timing.measure import DeviceLost, Lab
from benchmarks.timing.store import Results

ROOT = Path(__file__).parents[3]
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
    files = {path.name for path in (ROOT / "benchmarks/ops").glob("bench_*.py")}
    assert suite.parts()[:2] == ["contracts", "ssd"]
    assert set(suite.parts()[1:]) == {name[6:-3] for name in files}
    assert all(suite.share(part) > 0 for part in suite.parts())
    assert suite.share("rmsnorm") == 70
    assert suite.share("contracts:ops/test_ssd") == suite.share("contracts")


def test_a_part_that_there_is_not_is_refused(capsys: pytest.CaptureFixture) -> None:
    for part in ("nothing", "contracts:nowhere"):
        with pytest.raises(SystemExit):
            suite.main(["--part", "rmsnorm", part])
        assert f"there is no part '{part}'; there are contracts, ssd, " in capsys.readouterr().err


def test_a_part_needs_torch_and_this_folder_only(tmp_path: Path) -> None:
    """No pytest, no pytest-benchmark, no hypothesis, nothing of the model's."""
    absent = "pytest pytest_benchmark hypothesis safetensors av PIL transformers timeviper_fast"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent.split()!r}))\n"
        "from benchmarks.timing.__main__ import main\n"
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
    command = [sys.executable, "-m", "pytest", "benchmarks/ops/bench_attention_topk.py"]
    done = subprocess.run(
        [*command, "--benchmark-only", "-p", "no:cacheprovider"],
        cwd=ROOT, env=without_gpu(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout
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
    assert suite.run_all(suite.parts(), suite.TOTAL_SECONDS, tmp_path) == 9
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
    assert suite.run_all(suite.parts(), 500, tmp_path) == 0
    assert budgets[-1] == pytest.approx(500 - suite.GRACE_SECONDS, abs=0.1)
    assert budgets == sorted(budgets) or budgets[0] < budgets[-1]


def test_chosen_parts_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    ran = []

    def run_process(command: list[str], seconds: float) -> int:
        ran.append((command[command.index("--part") + 1], seconds))
        return 0

    monkeypatch.setattr(suite, "run_process", run_process)
    assert suite.main(["--part", "rmsnorm", "contracts:ops/test_ssd", "--seconds", "400"]) == 0
    assert ran == [("rmsnorm", 140), ("contracts:ops/test_ssd", 400)]


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


def test_the_contracts_are_all_tests_that_have_kernels_to_run() -> None:
    """As pytest finds them by their marks, where Triton can run."""
    pytest.importorskip("triton")
    assert all((ROOT / name).exists() for name in contracts.files())
    folders = [f"tests/{folder}" for folder in contracts.FOLDERS]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "triton", *folders]
    done = subprocess.run(
        [*command, "-o", "addopts=", "-p", "no:cacheprovider"],
        cwd=ROOT, env=without_gpu() | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    found = {line.partition("::")[0] for line in lines if "::" in line}
    assert found == set(contracts.files()), done.stdout[-2000:] + done.stderr[-2000:]


def test_a_part_of_the_contracts_is_named_as_its_files_begin() -> None:
    assert contracts.chosen("contracts") == contracts.files()
    scan = contracts.chosen("contracts:ops/test_ssd")
    assert "tests/ops/test_ssd_backward.py" in scan
    assert all(name.startswith("tests/ops/test_ssd") for name in scan)
    assert contracts.chosen("contracts:ops/test_rmsnorm.py") == ["tests/ops/test_rmsnorm.py"]
    assert contracts.chosen("contracts:nowhere") == []


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


def contract_rows(
    path: Path, text: str, seconds: float = 120, lanes: int = 1, stop: bool = False
) -> dict[str, dict]:
    """stop: its time is up as soon as a test has passed."""
    path.write_text(text)
    rows: dict[str, dict] = {}
    log = path.with_name("failures.txt")
    deadline = time.monotonic() + seconds

    def done(name: str, row: dict) -> None:
        rows[name] = row
        if stop:
            ended.append(name)

    ended: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contracts, "monotonic", lambda: time.monotonic() + 1e6 * len(ended))
        contracts.run([str(p) for p in path.parent.glob("test_*.py")], deadline, done, log, lanes)
    return {Path(name).name: row for name, row in rows.items()}


def test_lanes_share_the_tests_and_one_that_dies_is_followed_by_another(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import nowhere_to_be_found\n")
    rows = contract_rows(tmp_path / "test_mixed.py", MIXED, lanes=2)
    row = rows["test_mixed.py"]
    # each test once, whichever of the lanes ran it
    assert [row[kind] for kind in contracts.KINDS] == [3, 3, 1]
    assert sorted(row["failures"]) == [
        "test_dies: its process died (9)",
        "test_some[a b]: AssertionError: assert 'a b' == 'c'",
        "test_torn: ValueError: at its end",
    ]
    assert "reason" not in row
    log = (tmp_path / "failures.txt").read_text()
    assert log.count("==") >= 3
    assert "test_mixed.py::test_dies\nits process died (9)" in log
    broken = rows["test_broken.py"]
    assert [broken[kind] for kind in contracts.KINDS] == [0, 1, 0]
    assert "No module named 'nowhere_to_be_found'" in broken["failures"][0]


def test_a_lost_gpu_costs_the_test_that_lost_it(tmp_path: Path) -> None:
    """What came after it in that process would fail too, and mean nothing."""
    text = """import pytest
from benchmarks.timing import lane
pytestmark = pytest.mark.triton
def test_first():
    lane.lost = lambda: True
    raise RuntimeError("an illegal memory access was encountered")
@pytest.mark.parametrize("n", range(5))
def test_next(n): pass
"""
    row = contract_rows(tmp_path / "test_lost.py", text)["test_lost.py"]
    assert [row[kind] for kind in contracts.KINDS] == [5, 1, 0]
    (failure,) = row["failures"]
    assert failure == "test_first: RuntimeError: an illegal memory access was encountered"


def test_tests_that_take_too_long_are_stopped_with_what_they_had_shown(tmp_path: Path) -> None:
    text = "import time, pytest\npytestmark = pytest.mark.triton\ndef test_a(): pass\n"
    text += "def test_b(): time.sleep(600)\ndef test_c(): pass\n"
    row = contract_rows(tmp_path / "test_long.py", text, stop=True)["test_long.py"]
    assert [row[kind] for kind in contracts.KINDS] == [1, 0, 0]
    assert row["reason"] == "stopped: its time was up, 2 of 3 not run"
    assert contract_rows(tmp_path / "test_long.py", text, -1) == {}


def test_the_contracts_rows_are_kept_beside_those_of_other_files(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["tests/ops/test_a.py", "tests/ops/test_b.py"]
    monkeypatch.setattr(contracts, "files", lambda: names)
    figures = {"passed": 2, "failed": 0, "skipped": 0, "seconds": 1.0}

    def run(names: list[str], deadline: float, done: object, log: Path) -> None:
        assert log == tmp_path / "no-gpu-failures.txt"
        for name in names:
            done(name, {"case": name, **figures, "failed": int(name.endswith("b.py"))})

    monkeypatch.setattr(contracts, "run", run)
    assert suite.run_part("contracts:ops/test_a", 60, results, gpu=True) == 0
    part = parts_of(tmp_path)["contracts"]
    assert (list(part["cases"]), part["left_out"]) == (names[:1], [])
    assert suite.run_part("contracts:ops/test_b", 60, results, gpu=True) == 1
    part = parts_of(tmp_path)["contracts"]
    assert (list(part["cases"]), part["left_out"]) == (names, [])
