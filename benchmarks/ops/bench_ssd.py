"""The Mamba-2 scan of whole sequences. Its parts are the groups of heads."""

from __future__ import annotations

from typing import Any

from benchmarks.shapes import scan, scan_backward_floor, scan_floor
from benchmarks.timing.bench import PREFILL, Bench, Shape, Split

ARGUMENTS = {"x": 2, "dt": 2, "A": 0, "B": 2, "C": 2, "D": 0, "dt_bias": 0}
SECONDS = 150
BENCHES = (
    Bench(
        "scan",
        scan,
        scan_floor,
        PREFILL,
        Shape("small", 64),
        split=Split(8, ARGUMENTS, (2, 1)),
        backward=scan_backward_floor,
        # seconds a call beyond, and as much memory as the GPU has
        plain_up_to=16_384,
    ),
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
