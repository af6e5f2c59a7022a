"""The machine that figures come from: its GPU and versions, and the GPU's clock under load."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from benchmarks import ROOT
from tvkernels.core.backend import triton_version

# bits of clocks_event_reasons.active that mean a lower clock than the GPU could have
THROTTLES = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown", 0x80: "power brake",
}  # fmt: skip


def facts() -> dict[str, str]:
    """The GPU, its driver and its highest clock, and the versions that a figure depends on."""
    driver, _, clock = _nvidia_smi("driver_version,clocks.max.sm").partition(", ")
    return {
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "commit": _commit(),
        "driver": driver or "unknown",
        "highest SM clock": f"{clock} MHz" if clock else "unknown",
        "torch": torch.__version__,
        "triton": triton_version() or "not installed",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


@contextlib.contextmanager
def clock_watched() -> Iterator[dict[str, Any]]:
    """Ask nvidia-smi for the GPU's clock while the block runs.

    After the block the dict has "sm_mhz" and "throttled" (the reasons in words, "" for none). It
    stays empty where nvidia-smi does not answer.
    """
    seen: dict[str, Any] = {}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_nvidia_smi, "clocks.sm,clocks_event_reasons.active")
        yield seen
        # a line such as "1980, 0x0000000000000004"
        clock, _, bits = answer.result().partition(", ")
        with contextlib.suppress(ValueError):
            active = [name for bit, name in THROTTLES.items() if int(bits, 16) & bit]
            seen |= {"sm_mhz": int(clock), "throttled": ", ".join(active)}


def _nvidia_smi(fields: str) -> str:
    """Fields of the GPU in use, joined by ", "."""
    if not torch.cuda.is_available():
        return ""
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}"
    return _output("nvidia-smi", gpu, f"--query-gpu={fields}", "--format=csv,noheader,nounits")


def _commit() -> str:
    """The commit of the checkout. The variable COMMIT names it for a copy without git."""
    git = ("git", "-C", str(ROOT))
    commit = os.environ.get("COMMIT") or _output(*git, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown (no git checkout)"
    changed = _output(*git, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{commit} with changes" if changed else commit


def _output(*command: str) -> str:
    """What a command prints; nothing where it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
