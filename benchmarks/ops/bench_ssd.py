"""The Mamba-2 scan of whole sequences. Its parts are the groups of heads."""

from __future__ import annotations

from benchmarks.shapes.calls import scan_of
from benchmarks.timing.bench import Bench, Split

ARGUMENTS = {"x": 2, "dt": 2, "A": 0, "B": 2, "C": 2, "D": 0, "dt_bias": 0}
# longer, a call of plain PyTorch takes seconds and as much memory as the GPU has
BENCHES = (Bench("scan", scan_of(), split=Split(8, ARGUMENTS, (2, 1)), plain_up_to=16_384),)
