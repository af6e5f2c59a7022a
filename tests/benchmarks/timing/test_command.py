"""`python -m benchmarks.timing`: which cases run, in which process, and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.timing import __main__ as command
from benchmarks.timing.measure import Lab

OP = "selective_state_update"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)


def measured(folder: Path) -> dict:
    return json.loads((folder / "no-gpu.json").read_text(encoding="utf-8"))["cases"]


def test_nothing_to_measure_is_an_error(capsys: pytest.CaptureFixture) -> None:
    for words, why in (
        ("nothing", "there is no op 'nothing'; there are attention_topk, causal_conv1d, "),
        ("ssd --only norm", "no case's name contains 'norm'"),
    ):
        with pytest.raises(SystemExit):
            command.main(words.split())
        assert why in capsys.readouterr().err


def test_an_op_needs_torch_and_this_folder_only(tmp_path: Path) -> None:
    """It needs no pytest, no hypothesis and no package of the model's."""
    absent = ["pytest", "xdist", "hypothesis", "safetensors", "transformers", "timeviper_fast"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from benchmarks.timing.__main__ import main\n"
        f"sys.exit(main([{OP!r}, '--results', {str(tmp_path)!r}]))"
    )
    here = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=here | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(measured(tmp_path)) == 2
    for entry in measured(tmp_path).values():
        assert [row["provider"] for row in entry["rows"]] == ["ours", "reference", "copy"]
        assert {"commit", "torch", "copy", "product", "mamba-ssm"} <= set(entry["facts"])
        for row in entry["rows"]:
            assert f"| {row['case']} | {row['provider']} |" in done.stdout


def test_several_ops_run_in_a_process_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []

    def run(words: list[str], cwd: Path) -> subprocess.CompletedProcess:
        started.append(words[3:])
        return subprocess.CompletedProcess(words, -11 if "decode_step" in words else 0)

    monkeypatch.setattr(command.subprocess, "run", run)
    options = ["--only", "step", "--results", str(tmp_path)]
    assert command.main(options) == 11
    ops = ("causal_conv1d", "decode_step", "replay_state_update", OP)
    assert started == [[op, *options] for op in ops]


def test_an_interruption_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(lab: Lab, case: object) -> list[dict]:
        if "backward" in case.name:
            raise KeyboardInterrupt
        return [{"case": case.name, "provider": "ours", "ms": 1.0}]

    monkeypatch.setattr(Lab, "run", run)
    with pytest.raises(KeyboardInterrupt):
        command.main(["rmsnorm", "--results", str(tmp_path)])
    assert list(measured(tmp_path)) == ["gated norm, small"]


@pytest.mark.parametrize(("provider", "code"), [("ours", 1), ("mamba-ssm", 0)])
def test_a_wrong_kernel_of_ours_is_an_exit_code(
    provider: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"provider": provider, "reason": "fails the contract: result 0"}
    monkeypatch.setattr(Lab, "run", lambda lab, case: [{"case": case.name, **wrong}])
    assert command.main(["rmsnorm"]) == code
    assert not (RESULTS / "no-gpu.json").exists()
