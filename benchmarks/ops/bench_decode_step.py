"""The mixer's whole decode step, as the model takes it: convolution, scan and gate."""

from __future__ import annotations

from typing import Any

from benchmarks.shapes import mixer_step
from benchmarks.timing.bench import DECODE, FLOORS, Bench, Form, Shape
from benchmarks.timing.peers import mixer_step_of_two, with_A

SECONDS = 45
BENCHES = (
    Bench(
        "decode step of the mixer",
        mixer_step,
        FLOORS["decode step of the mixer, batch 1"],
        DECODE,
        Shape("small", 2),
        changes=("conv_state", "ssm_state"),
        forms={"our two ops": Form(mixer_step_of_two, before=with_A)},
    ),
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
