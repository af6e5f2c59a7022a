"""One decode step of the scan, with a state of 32 and of 16 bits."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.shapes import state_update
from benchmarks.timing.bench import DECODE, FLOORS, Bench, Shape, Split

ARGUMENTS = {"state": 1, "x": 1, "dt": 1, "A": 0, "B": 1, "C": 1, "D": 0, "dt_bias": 0}
SECONDS = 40
BENCHES = tuple(
    Bench(
        f"decode step of the scan, {8 * dtype.itemsize} bit state",
        state_update(dtype, part=1),
        FLOORS[f"decode step of the scan, batch 1, {8 * dtype.itemsize} bit state"],
        DECODE,
        Shape("small", 2),
        split=Split(8, ARGUMENTS, (1,)),
        changes=("state",),
    )
    for dtype in (torch.float32, torch.bfloat16)
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
