"""The causal convolution: of whole sequences, and one decode step."""

from __future__ import annotations

from typing import Any

from benchmarks.shapes import conv, conv_update
from benchmarks.timing.bench import DECODE, FLOORS, PREFILL, Bench, Shape, Split

CHANNELS = {"weight": 0, "bias": 0}
SECONDS = 55
BENCHES = (
    Bench(
        "convolution",
        conv,
        FLOORS["convolution"],
        PREFILL,
        Shape("small", 64),
        split=Split(96, {"x": 1, **CHANNELS}, (1,)),
        backward=FLOORS["convolution, backward"],
    ),
    Bench(
        "decode step of the convolution",
        conv_update,
        FLOORS["decode step of the convolution, batch 1"],
        DECODE,
        Shape("small", 2),
        split=Split(96, {"x": 1, "conv_state": 1, **CHANNELS}, (1,)),
        changes=("conv_state",),
    ),
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
