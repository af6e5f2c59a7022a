"""Dropped tokens out of a sequence: what follows the selection."""

from __future__ import annotations

from typing import Any

from benchmarks.shapes_video import leave, leave_floor
from benchmarks.timing.bench import PREFILL, Bench, Shape, Split

SMALL = Shape("small", 64)
SECONDS = 30
BENCHES = (
    Bench(
        "rows taken out",
        leave,
        leave_floor,
        PREFILL,
        SMALL,
        # rows move whole: a piece of the channels is a part
        split=Split(64, {"x": 2}, (2, 2, 0)),
        backward=leave_floor,
    ),
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
