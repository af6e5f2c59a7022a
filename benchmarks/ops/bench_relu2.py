"""The MLP's activation, between its two products."""

from __future__ import annotations

from benchmarks.shapes.calls import activation
from benchmarks.timing.bench import Bench, Split

BENCHES = (Bench("activation of the MLP", activation, split=Split(64, {"x": 1}, (1,))),)
