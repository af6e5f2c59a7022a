"""The machine's facts and its clock, by commands that exist, fail or are missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.timing.machine import clock_of, clock_watched, facts

KNOWN = """[ "$1" = --id=GPU-0b-1 ] || exit 9
case "$2" in
    *=driver_version,clocks.max.sm) echo 570.1, 1980;;
    *=clocks.sm,clocks_event_reasons.active) echo 1755, 0x0000000000000024;;
esac"""
THROTTLED = {"sm_mhz": 1755, "throttled": "power cap, software thermal slowdown"}


@pytest.mark.parametrize(
    ("script", "driver", "highest", "clock"),
    [
        (KNOWN, "570.1", "1980 MHz", THROTTLED),
        ("echo [N/A], [N/A]", "[N/A]", "[N/A] MHz", {}),
        ("echo failed; exit 9", "unknown", "unknown", {}),
        (None, "unknown", "unknown", {}),
    ],
)
def test_nvidia_smi_is_asked_for_this_gpu(
    script: str | None, driver: str, highest: str, clock: dict, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    gpu = SimpleNamespace(uuid="0b-1", name="NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    found = facts()
    assert [found[name] for name in ("GPU", "driver", "highest SM clock")] == [
        gpu.name,
        driver,
        highest,
    ]
    with clock_watched() as seen:
        assert not seen
    assert seen == clock


def test_an_idle_gpu_is_not_throttled() -> None:
    assert clock_of("345, 0x0000000000000001\n") == {"sm_mhz": 345, "throttled": ""}


def test_without_git_the_commit_is_what_commit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("COMMIT", raising=False)
    assert facts()["commit"] == "unknown (no git checkout)"
    monkeypatch.setenv("COMMIT", "abc")
    assert facts()["commit"] == "abc"
