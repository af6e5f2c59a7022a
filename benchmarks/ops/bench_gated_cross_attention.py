"""TransV's transfer: the question's tokens read the dropped vision tokens."""

from __future__ import annotations

from typing import Any

from benchmarks.shapes_video import transfer, transfer_backward_floor, transfer_floor
from benchmarks.timing.bench import PREFILL, Bench, Form, Shape
from benchmarks.timing.peers import sdpa_transfer

SECONDS = 40
BENCHES = (
    Bench(
        "transfer into the text",
        transfer,
        transfer_floor,
        PREFILL,
        Shape("small", 4),
        backward=transfer_backward_floor,
        forms={"torch SDPA": Form(sdpa_transfer)},
    ),
)


def test_case(measured: Any, provider: str, benchmark: Any) -> None:
    measured.report(provider, benchmark)
