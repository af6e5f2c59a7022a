"""The machine's facts and its clock, by commands that exist, fail or are missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.timing.machine import clock_watched, facts


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(uuid="0b-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def nvidia_smi(folder: Path, patch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "nvidia-smi").chmod(0o755)
    patch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.usefixtures("on_a_gpu")
def test_nvidia_smi_is_asked_for_this_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = '[ "$1" = --id=GPU-0b-1 ] || exit 9; case "$2" in '
    known += "*=driver_version,clocks.max.sm) echo 570.1, 1980;; "
    known += "*=clocks.sm,clocks_event_reasons.active) echo 1755, 0x0000000000000024;; esac"
    nvidia_smi(tmp_path, monkeypatch, known)
    assert {"driver": "570.1", "highest SM clock": "1980 MHz"}.items() <= facts().items()
    with clock_watched() as seen:
        assert not seen
    assert seen == {"sm_mhz": 1755, "throttled": "power cap, software thermal slowdown"}


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("text", ["echo failed; exit 9", "echo [N/A], [N/A]"])
def test_without_an_answer_the_clock_is_unknown(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi(tmp_path, monkeypatch, text)
    with clock_watched() as seen:
        pass
    assert seen == {}


def test_without_nvidia_smi_and_git_driver_and_commit_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert facts()["driver"] == "unknown"
    assert facts()["commit"] == "unknown (no git checkout)"
    monkeypatch.setenv("COMMIT", "abc")
    assert facts()["commit"] == "abc"
