"""One decode step of the scan, with a state of 32 and of 16 bits."""

from __future__ import annotations

import torch

from benchmarks.shapes.calls import state_update
from benchmarks.timing.bench import DECODE, Bench, Split

ARGUMENTS = {"state": 1, "x": 1, "dt": 1, "A": 0, "B": 1, "C": 1, "D": 0, "dt_bias": 0}
GROUPS = Split(8, ARGUMENTS, (1,))
NAME = "decode step of the scan, {} bit state"
BENCHES = tuple(
    Bench(NAME.format(bits), state_update(dtype, 1), DECODE, 2, split=GROUPS, changes=("state",))
    for bits, dtype in ((32, torch.float32), (16, torch.bfloat16))
)
