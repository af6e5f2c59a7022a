"""The norms: gated and grouped behind the scan, and the residual's before each layer."""

from __future__ import annotations

from benchmarks.shapes.calls import gated_norm, residual_norm
from benchmarks.timing.bench import Bench, Split

BENCHES = (
    Bench("gated norm", gated_norm, split=Split(64, {"x": 1, "z": 1}, (1,))),
    Bench("residual norm", residual_norm, split=Split(64, {"x": 1, "residual": 1}, (1, 1))),
)
