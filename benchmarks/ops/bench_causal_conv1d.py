"""The causal convolution: of whole sequences, and one decode step."""

from __future__ import annotations

from benchmarks.shapes.calls import conv, conv_update
from benchmarks.timing.bench import DECODE, Bench, Split

CHANNELS = {"x": 1, "weight": 0, "bias": 0}
STEP = Split(96, {**CHANNELS, "conv_state": 1}, (1,))
NAME = "decode step of the convolution"
BENCHES = (
    Bench("convolution", conv, split=Split(96, CHANNELS, (1,))),
    Bench(NAME, conv_update, DECODE, 2, split=STEP, changes=("conv_state",)),
)
