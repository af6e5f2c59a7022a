"""The norms: gated and grouped behind the scan, and the residual's before each layer."""

from __future__ import annotations

from typing import Any

from benchmarks.shapes import gated_norm, residual_norm
from benchmarks.timing.bench import FLOORS, PREFILL, Bench, Shape, Split

SMALL = Shape("small", 64)
SECONDS = 70
BENCHES = (
    Bench(
        "gated norm",
        gated_norm,
        FLOORS["gated norm"],
        PREFILL,
        SMALL,
        split=Split(64, {"x": 1, "z": 1}, (1,)),
        backward=FLOORS["gated norm, backward"],
    ),
    Bench(
        "residual norm",
        residual_norm,
        FLOORS["residual norm"],
        PREFILL,
        SMALL,
        split=Split(64, {"x": 1, "residual": 1}, (1, 1)),
        backward=FLOORS["residual norm, backward"],
    ),
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
