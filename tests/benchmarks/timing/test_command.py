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

from benchmarks import ROOT
from benchmarks.timing import __main__ as command
from benchmarks.timing.measure import DeviceLost, Lab
from benchmarks.timing.store import Results

PART = "selective_state_update"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "gpu_name", lambda: "no GPU")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path, "no GPU")


def parts_of(folder: Path) -> dict:
    return json.loads((folder / "no-gpu.json").read_text(encoding="utf-8"))["parts"]


def python(*arguments: str) -> str:
    """What a process without a GPU prints."""
    here = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=here | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_of_a_benchmark_is_a_part() -> None:
    files = {path.stem for path in (ROOT / "benchmarks/ops").glob("bench_*.py")}
    assert command.parts()[:2] == ["contracts", "ssd"]
    assert {f"bench_{part}" for part in command.parts()[1:]} == files
    assert command.share("rmsnorm") == 70
    assert command.share("contracts:ops") == command.share("contracts")


@pytest.mark.parametrize("part", ["nothing", "contracts:nowhere"])
def test_a_part_that_there_is_not_is_refused(part: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.main(["--part", "rmsnorm", part])
    assert f"there is no part '{part}'; there are contracts, ssd, " in capsys.readouterr().err


def test_a_part_needs_torch_and_this_folder_only(tmp_path: Path) -> None:
    """No pytest, no pytest-benchmark, no hypothesis, nothing of the model's."""
    absent = (
        "pytest xdist pytest_benchmark hypothesis safetensors av PIL transformers timeviper_fast"
    )
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent.split()!r}))\n"
        "from benchmarks.timing.__main__ import main\n"
        f"sys.exit(main(['--part', {PART!r}, '--results', {str(tmp_path)!r}]))"
    )
    printed = python("-c", code)
    part = parts_of(tmp_path)[PART]
    assert part["left_out"] == []
    assert len(part["cases"]) == 2
    for entry in part["cases"].values():
        assert [row["provider"] for row in entry["rows"]] == ["ours", "reference", "copy"]
        assert {"copy", "product"} <= set(entry["stamp"])
        for row in entry["rows"]:
            assert f"| {row['case']} | {row['provider']} |" in printed


def test_pytest_benchmark_gets_the_samples_of_the_same_files(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    start = ["-m", "pytest", "benchmarks", "-k", "selection and not hidden", "--benchmark-only"]
    report = tmp_path / "report.json"
    python(*start, "-p", "no:cacheprovider", "-p", "no:xdist", f"--benchmark-json={report}")
    found = {b["params"]["provider"]: b for b in json.loads(report.read_text())["benchmarks"]}
    assert set(found) == {"ours", "reference", "repeated keys", "copy"}
    for one in found.values():
        assert one["stats"]["rounds"] == 3
        assert 1e3 * one["stats"]["median"] == pytest.approx(one["extra_info"]["ms"], rel=1e-3)


# time


class Started:
    """In the place of the parts' processes: what was started, on a clock that only they move."""

    def __init__(self, patch: pytest.MonkeyPatch, code: int, takes: float) -> None:
        self.now, self.code, self.takes = 0.0, code, takes
        self.parts: dict[str, tuple[float, float]] = {}
        patch.setattr(command.time, "monotonic", lambda: self.now)
        patch.setattr(command, "run_process", self.run)

    def run(self, words: list[str], limit: float) -> int:
        budget = float(words[words.index("--seconds") + 1])
        self.parts[words[words.index("--part") + 1]] = (budget, limit)
        self.now += self.takes * limit
        return self.code


def test_all_parts_fit_nine_minutes_even_if_each_has_to_be_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = Started(monkeypatch, -9, takes=1)
    assert command.run_all(command.parts(), command.TOTAL_SECONDS, tmp_path) == 9
    assert list(started.parts) == command.parts()
    assert started.now <= 9 * 60
    (note,) = parts_of(tmp_path)["ssd"]["notes"]
    assert note.startswith("its process was killed after ")


def test_what_a_part_leaves_goes_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = Started(monkeypatch, 0, takes=0)
    assert command.run_all(command.parts(), 500, tmp_path) == 0
    budget, limit = started.parts[command.parts()[-1]]
    assert (budget, limit) == (pytest.approx(500 - command.GRACE_SECONDS, abs=0.1), 500)
    started.parts.clear()
    assert command.main(["--part", "rmsnorm", "contracts:ops", "--seconds", "400"]) == 0
    assert {part: limit for part, (_, limit) in started.parts.items()} == {
        "rmsnorm": 140,
        "contracts:ops": 400,
    }


def test_a_process_and_what_it_started_are_killed_in_time(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    assert command.run_process([sys.executable, "-c", code], 3) == -signal.SIGKILL
    assert time.monotonic() - start < 20
    stat = Path(f"/proc/{int(pid.read_text())}/stat")
    for _ in range(50):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the grandchild lives")


# one part


def fake_run(lab: Lab, case: object) -> list[dict]:
    return [{"case": case.name, "provider": "ours", "ms": 1.0}]


def test_a_part_without_time_says_what_it_left_out(results: Results, tmp_path: Path) -> None:
    assert command.run_part("rmsnorm", 0, results, gpu=False) == 0
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
        command.run_part("rmsnorm", 60, results, gpu=False)
    part = parts_of(tmp_path)["rmsnorm"]
    assert list(part["cases"]) == ["gated norm, small"]
    assert len(part["left_out"]) == 3


def test_a_lost_device_ends_the_part(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(lab: Lab, case: object) -> list[dict]:
        raise DeviceLost("mamba-ssm at norm: illegal address", fake_run(lab, case))

    monkeypatch.setattr(Lab, "run", run)
    assert command.run_part("rmsnorm", 60, results, gpu=False) == 1
    part = parts_of(tmp_path)["rmsnorm"]
    assert part["notes"][-1].startswith("stopped, the GPU is lost: mamba-ssm at norm")
    assert len(part["cases"]) == 1


@pytest.mark.parametrize(("provider", "code"), [("ours", 1), ("mamba-ssm", 0)])
def test_ours_being_wrong_is_an_exit_code(
    provider: str, code: int, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"provider": provider, "reason": "fails the contract: result 0"}
    monkeypatch.setattr(Lab, "run", lambda lab, case: [{"case": case.name, **wrong}])
    assert command.run_part("rmsnorm", 60, results, gpu=False) == code
