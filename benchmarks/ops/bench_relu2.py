"""The MLP's activation, between its two products."""

from __future__ import annotations

from typing import Any

from benchmarks.shapes import activation
from benchmarks.timing.bench import FLOORS, PREFILL, Bench, Shape, Split

SMALL = Shape("small", 64)
SECONDS = 35
BENCHES = (
    Bench(
        "activation of the MLP",
        activation,
        FLOORS["activation of the MLP"],
        PREFILL,
        SMALL,
        split=Split(64, {"x": 1}, (1,)),
        backward=FLOORS["activation of the MLP, backward"],
    ),
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
