"""The machine's facts and its clock, by commands that exist, fail or are missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.timing.machine import clock_watched, facts

KNOWN = """[ "$1" = --id=GPU-0b-1 ] || exit 9
case "$2" in
    *=driver_version,clocks.max.sm) echo 570.1, 1980;;
    *=clocks.sm,clocks_event_reasons.active) echo 1755, 0x0000000000000024;;
esac"""
UNKNOWN = ["unknown", "unknown"]
THROTTLED = {"sm_mhz": 1755, "throttled": "power cap, software thermal slowdown"}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder that has commands, on a machine with a GPU."""
    gpu = SimpleNamespace(uuid="0b-1", name="NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("script", "known", "clock"),
    [
        (KNOWN, ["570.1", "1980 MHz"], THROTTLED),
        # bit 0 is an idle GPU
        (KNOWN.replace("24", "01"), ["570.1", "1980 MHz"], THROTTLED | {"throttled": ""}),
        ("echo [N/A], [N/A]", ["[N/A]", "[N/A] MHz"], {}),
        ("echo failed; exit 9", UNKNOWN, {}),
        (None, UNKNOWN, {}),
    ],
)
def test_nvidia_smi_is_asked_for_this_gpu(
    folder: Path, script: str | None, known: list[str], clock: dict
) -> None:
    if script:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "nvidia-smi").chmod(0o755)
    found = facts()
    assert [found["driver"], found["highest SM clock"]] == known
    with clock_watched() as seen:
        assert not seen
    assert seen == clock


def test_without_git_the_commit_is_what_commit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("COMMIT", raising=False)
    assert facts()["commit"] == "unknown (no git checkout)"
    monkeypatch.setenv("COMMIT", "abc")
    assert facts()["commit"] == "abc"
