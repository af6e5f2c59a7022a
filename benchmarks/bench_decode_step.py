"""The mixer's whole decode step, as the model takes it: convolution, scan and gate."""

from __future__ import annotations

from typing import Any

from benchmarks.definition import DECODE, FLOORS, Bench, Shape
from benchmarks.shapes import mixer_step

SECONDS = 15
BENCHES = (
    Bench(
        "decode step of the mixer",
        mixer_step,
        FLOORS["decode step of the mixer, batch 1"],
        DECODE,
        Shape("small", 2),
        changes=("conv_state", "ssm_state"),
    ),
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
